"""Tables of mixed columns: what each column is taken for, the command from a CSV to a CSV, and one line for what is
wrong with a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("typer")
pytest.importorskip("accelerate")

import pandas as pd

from command import contents, ordinary_process
from vae_fast import cli
from vae_fast.training import DataError, Recipe, data, divergence, load_model, tables

Capture = pytest.CaptureFixture[str]
ROWS = 600
TRAIN = [
    "train",
    "--data",
    "people.csv",
    "--batch-size",
    "64",
    "--hidden",
    "32",
    "--latent",
    "3",
    "--lr",
    "0.01",
]
TRAIN += ["--columns", "visits:poisson", "--columns", "id:skip", "--out", "run"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # steps of a millisecond: threads that wait for each other would be most of the time
    yield from ordinary_process(monkeypatch)
    torch.set_num_threads(threads)


def people() -> Any:
    """City follows sex, income follows the city; a tenth of the incomes is missing."""
    rng = np.random.default_rng(0)
    is_man = rng.random(ROWS) < 0.3
    city = np.where(is_man, "Bern", np.where(rng.random(ROWS) < 0.5, "Aarau", "Chur, GR"))
    income = np.where(city == "Bern", 90_000.0, 50_000.0) + rng.normal(0, 2000, ROWS)
    income[::10] = np.nan
    return pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(ROWS)],
            "income": income.round(2),
            "sex": np.where(is_man, "m", "f"),
            "city": city,
            "age": rng.integers(20, 70, ROWS),
            "country": "CH",
            "visits": rng.poisson(np.where(is_man, 6.0, 1.0)),
            "member": rng.random(ROWS) < 0.8,
        }
    )


def fails(*arguments: str) -> None:
    assert cli.run([*arguments]) == 1, arguments


def test_from_csv_to_csv(capsys: Capture) -> None:
    table = people()
    table.to_csv("people.csv", index=False)
    assert cli.run([*TRAIN, "--epochs", "40"]) == 0
    out = capsys.readouterr().out
    assert "480 to train, 120 to test, 6; mlp VAE" in out and "mixed_columns" in out
    assert "note: numbers: income, age\n" in out and "note: of two values: sex, member\n" in out
    assert "note: counts (poisson): visits\n" in out and "note: 60 entries are missing\n" in out

    assert not Path("run/samples.png").exists() and Path("run/loss.png").exists()

    assert cli.run(["generate", "run", "-n", "2000", "--seed", "1"]) == 0
    made = pd.read_csv("run/generated.csv")
    assert list(made) == ["income", "sex", "city", "age", "country", "visits", "member"] and len(made) == 2000
    assert set(made.sex) == {"m", "f"} and set(made.city) == set(table.city) and set(made.country) == {"CH"}
    assert made.member.dtype == bool and made.age.dtype == made.visits.dtype == int and made.visits.min() == 0
    assert abs((made.sex == "m").mean() - 0.3) < 0.1 and abs(made.member.mean() - 0.8) < 0.1
    assert abs(made.income.mean() - table.income.mean()) < 5000
    assert abs(made.income.std() / table.income.std() - 1) < 0.25
    assert abs(made.age.mean() - 44.5) < 4 and abs(made.visits.mean() - table.visits.mean()) < 0.6
    in_bern = made.city == "Bern"  # what the columns tell of each other
    assert made.income[in_bern].mean() - made.income[~in_bern].mean() > 25_000
    assert (made.sex[in_bern] == "m").mean() > 0.75

    before = Path("run/generated.csv").read_bytes()
    assert cli.run(["generate", "run", "-n", "2000", "--seed", "1", "--out", "again.csv"]) == 0
    assert Path("again.csv").read_bytes() == before
    for name, read in (("a.tsv", partial(pd.read_csv, sep="\t")), ("a.parquet", pd.read_parquet)):
        assert cli.run(["generate", "run", "-n", "2000", "--seed", "1", "--out", name]) == 0
        pd.testing.assert_frame_equal(read(name), made, check_dtype=False)

    assert cli.run(["reconstruct", "run"]) == 0
    test = table.iloc[data.split_rows("people.csv", ROWS)[1]].reset_index()
    sent = pd.read_csv("run/reconstructed.csv")
    assert len(sent) == 120 and sent.income.notna().all()  # what was missing is filled in
    is_in_bern = test.city == "Bern"  # which of the other two it is, no other column tells
    assert ((sent.city == "Bern") == is_in_bern).mean() > 0.9 and (sent.sex == test.sex).mean() > 0.9
    assert (sent.income - test.income).abs().median() < 5000

    assert cli.run(["interpolate", "run", "--between", "3,5", "--steps", "4"]) == 0
    way = pd.read_csv("run/interpolation.csv")
    assert list(way) == ["row", "column", *sent] and way.row.tolist() == [0] * 4
    assert way.column.tolist() == [0, 1, 2, 3]
    for place, sample in ((0, 3), (3, 5)):
        for name in sent:
            end, whole = way[name][place], sent[name][sample]
            assert end == pytest.approx(whole, rel=1e-5) if sent[name].dtype == float else end == whole

    table.assign(city="Basel").to_csv("others.csv", index=False)
    fails("reconstruct", "run", "--data", "others.csv")
    error = capsys.readouterr().err
    assert error.endswith(
        "others.csv: column city, row 1: expected one of Aarau, Bern, Chur, GR, but got Basel\n"
    )
    fails("generate", "run", "--out", "a.png")
    assert (
        "expected --out to be a name that ends in .csv or .tsv or .parquet for this model, but got a.png"
        in capsys.readouterr().err
    )


def test_resumed_run_is_the_same() -> None:
    people().to_csv("people.csv", index=False)
    assert cli.run([*TRAIN, "--epochs", "4"]) == 0
    whole = contents(Path("run"))
    assert cli.run([*TRAIN, "--epochs", "2", "--overwrite"]) == 0
    assert cli.run([*TRAIN, "--epochs", "4", "--resume"]) == 0
    assert contents(Path("run"))["model.safetensors"] == whole["model.safetensors"]
    model = load_model("run")
    assert json.loads(Path("run/config.json").read_text())["columns"][0]["name"] == "income"
    model.save_pretrained("saved")
    again = type(model).from_pretrained("saved").eval()
    x = data.load("people.csv", known=model.columns).test
    assert torch.equal(again.reconstruct(x), model.reconstruct(x)) and again.columns == model.columns


def test_kinds_scale_and_order(tmp_path: Path) -> None:
    """Mean and deviation are of the training part; x stands by kind."""
    table = people()
    table.to_csv("people.csv")  # with pandas' column of row numbers
    found = data.load("people.csv", columns=["id:skip"])
    income, sex, city, age, country, visits, member = found.columns
    assert (
        [c.kind for c in (income, age, visits)] == ["gaussian"] * 3 and not income.is_whole and age.is_whole
    )
    assert sex == tables.Column("sex", "bernoulli", ("f", "m")) and member.values == ("False", "True")
    assert city == tables.Column("city", "categorical", ("Aarau", "Bern", "Chur, GR"))
    assert country == tables.Column("country", "constant", ("CH",))
    assert [c.name for c in tables.order(found.columns)] == [
        "income",
        "age",
        "visits",
        "sex",
        "member",
        "city",
    ]
    assert "the first column, without a name, counts the rows: not used" in found.notes
    train = table.iloc[data.split_rows("people.csv", ROWS)[0]]
    assert income.mean == pytest.approx(train.income.mean()) and age.deviation == pytest.approx(
        train.age.std(ddof=0)
    )
    np.testing.assert_allclose(
        found.train[:, 1], (train.age - age.mean) / age.deviation, rtol=1e-5, atol=1e-6
    )
    assert found.train[:, 5].tolist() == train.city.map({"Aarau": 0, "Bern": 1, "Chur, GR": 2}).tolist()
    assert np.array_equal(found.train[:, 0].isnan(), train.income.isna())

    text = tables.to_csv(found.train.numpy(), found.columns).decode()
    Path("back.csv").write_text(text)
    back = pd.read_csv("back.csv", dtype=str)
    assert list(back) == list(table)[1:]
    for name in ("sex", "city", "age", "visits", "member"):
        assert back[name].tolist() == train[name].astype(str).tolist(), name
    np.testing.assert_allclose(back.income.astype(float), train.income, rtol=1e-6)


def test_parquet_has_types_of_its_own() -> None:
    pytest.importorskip("pyarrow")
    table = people().drop(columns="id")
    table["city"] = table.city.astype("category")
    table["age"] = table.age.astype("Int64").mask(table.age > 60)
    table["member"] = table.member.astype("boolean").mask(table.age == 30)
    table.to_parquet("people.parquet")
    table.to_csv("people.csv", index=False)
    parquet, text = data.load("people.parquet"), data.load("people.csv")
    assert parquet.columns == text.columns
    torch.testing.assert_close(parquet.train, text.train, rtol=0, atol=0, equal_nan=True)
    assert parquet.train.isnan().any(0).tolist() == [True, True, False, False, True, False]


WRONG = {
    "a,b\n" + "1,x\n" * 30 + "2O,y\n" + "3,z\n": "column a, row 31: expected a number as in the other rows "
    "(or --columns 'a:categorical'), but got 2O",
    "a,b\n1,2\n3,inf\n4,5\n": "column b, row 2: expected a finite number, but got inf",
    "a,b\n1,2\n3,4,5\n": "cannot be read as a table (Expected 2 fields in line 3, saw 3)",
    "a,b\n1,2,3\n3,4,5\n": "row 1: has more entries than the header has columns",
    "a;b\n1;2\n3;4\n": "expected a comma between the entries, but got ';'",
    "a,b\n1,x\n": "expected at least 2 samples (one to train, one to test), but got 1",
    "": "cannot be read as a table (No columns to parse from file)",
    "a\n" + "".join(f"name {i}\n" for i in range(30)): "column a: 30 different texts in 30 rows; "
    "--columns 'a:skip' leaves it out",
    "a\n1\n1\n1\n": "has no column whose entries differ",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_one_line(text: str, capsys: Capture) -> None:
    Path("t.csv").write_text(text)
    fails("train", "--data", "t.csv")
    line = capsys.readouterr().err
    assert (
        line.startswith("vae-fast: ") and line.endswith(f"t.csv: {WRONG[text]}\n") and line.count("\n") == 1
    )


def test_asked_columns_and_options_are_checked(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("t.csv").write_text("a,b,c\n1,-1,x\n2,4,y\n3,5,z\n4,0.5,x\n")
    for asked, message in {
        "d:poisson": "expected --columns d:poisson to be NAME:KIND of a column (a, b, c)",
        "a:count": "column a: expected its kind to be one of gaussian, laplace, bernoulli, categorical, poisson, "
        "negative_binomial, zero_inflated_negative_binomial, skip, but got count",
        "b:poisson": "column b, row 1: expected a whole number of at least 0 for poisson, but got -1",
        "c:gaussian": "column c, row 1: expected a finite number, but got x",
        "c:bernoulli": "column c: expected two values for bernoulli, but got 3",
    }.items():
        with pytest.raises(DataError) as raised:
            data.load("t.csv", columns=[asked])
        assert str(raised.value) == f"t.csv: {message}"
    assert data.load("t.csv", columns=["a:categorical"]).columns[0].values == ("1", "2", "3", "4")
    fails("train", "--data", "t.csv", "--likelihood", "gaussian")
    assert "a table takes no --likelihood: --columns NAME:KIND is of one column" in capsys.readouterr().err
    fails("train", "--data", "t.csv", "--variance", "0.1")
    assert "expected no --variance for a table, whose columns have their own" in capsys.readouterr().err
    fails("train", "--data", "t.csv", "--architecture", "conv")
    assert "expected --architecture to be 'mlp' for a table, but got 'conv'" in capsys.readouterr().err
    fails("train", "--data", "digits", "--columns", "a:poisson")
    assert "expected no --columns for what is no table: .csv" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pandas", None)
    fails("train", "--data", "t.csv")
    assert "t.csv: tables take pandas: pip install 'vae_fast[tables]'" in capsys.readouterr().err


def test_divergence_names_the_column() -> None:
    pd.DataFrame({"a": range(500), "b": [7e7] + [0.1, 0.2, 0.3] * 166 + [0.5]}).to_csv("t.csv", index=False)
    found = data.load("t.csv")
    is_in_train = 0 in data.split_rows("t.csv", 500)[0]
    text = divergence.explain(Recipe(data="t.csv", likelihood="mixed_columns"), found)
    assert is_in_train and text == "an entry of column b is 20 deviations from its mean: leave such rows out"


# Cells that pandas reads as something else: 007, 1.50, true, "a, b"; and gaps of every kind.
ODD = """id,code,ok,price,kind,"note, one",visits,empty,land
p0,007,true,1.50,a,"a, b",3,,CH
p1,010,false,2.0,b,x,,,CH
p2,007,,,a,NA,1,,
p3,010,true,1e1,,"say ""yes"" ",0,,
"""
SKIPPED = ["--columns", "id:skip", "--columns", "note, one:skip", "--columns", "visits:poisson"]


def odd_table(path: str, text: str = ODD) -> list[list[str]]:
    """Ten times the rows of ODD, each with an id of its own; returns its cells."""
    header, *lines = text.splitlines(keepends=True)
    rows = [line.replace("p", f"p{i}", 1) for i in range(10) for line in lines]
    content = "".join([header, *rows]).encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return [*csv.reader(io.StringIO(content.decode(), newline=""), delimiter="\t" if "\t" in header else ",")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz", "windows.csv"])
def test_only_gaps_are_filled(name: str) -> None:
    text = ODD
    if ".tsv" in name:
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows(csv.reader(io.StringIO(ODD)))
        text = file.getvalue()
    text = text.replace("\n", "\r\n") if name == "windows.csv" else text
    [header, *rows] = odd_table(name, text)
    quick = ["--epochs", "1", "--batch-size", "8", "--latent", "2", "--hidden", "8", *SKIPPED]
    assert cli.run(["train", "--data", name, "--out", "run", *quick]) == 0
    assert cli.run(["reconstruct", "run", "--part", "all", "--fill", "--out", "f.csv"]) == 0
    content = Path("f.csv").read_bytes().decode()
    assert content.count("\r\n") == (41 if name == "windows.csv" else 0)
    [found_header, *found] = csv.reader(io.StringIO(content, newline=""))
    assert found_header == header and len(found) == len(rows)
    filled: dict[str, set[str]] = {}
    for before, after in zip(rows, found, strict=True):
        for column, a, b in zip(header, before, after, strict=True):
            if a in ("", "NA") and column not in ("empty", "note, one"):
                filled.setdefault(column, set()).add(b)
            else:
                assert a == b, column
    assert filled.keys() == {"ok", "price", "kind", "visits", "land"}
    assert filled["ok"] <= {"true", "false"} and filled["kind"] <= {"a", "b"} and filled["land"] == {"CH"}
    assert all(math.isfinite(float(number)) for number in filled["price"] | filled["visits"])

    assert cli.run(["reconstruct", "run", "--only", "3,1", "--fill", "--out", "some.tsv"]) == 0
    test = data.split_rows(name, 40)[1]
    some = [*csv.reader(io.StringIO(Path("some.tsv").read_text()), delimiter="\t")]
    assert [row[:2] for row in some[1:]] == [rows[test[i]][:2] for i in (3, 1)]


def test_gaps_of_parquet_are_filled_in_their_types(capsys: Capture) -> None:
    pytest.importorskip("pyarrow")
    table = people()
    age = table.age.copy()
    table["city"] = table.city.astype("category").where(age != 33)
    table["age"] = table.age.astype("Int64").mask(age > 60)
    table["member"] = table.member.astype("boolean").mask(age == 30)
    table["visits"] = table.visits.astype("Int16").mask(age == 31)
    table["since"] = pd.date_range("2020-01-01", periods=ROWS).where(age != 32)
    table.to_parquet("t.parquet")
    quick = ["--epochs", "1", "--hidden", "8", "--columns", "id:skip", "--columns", "since:skip"]
    assert (
        cli.run(["train", "--data", "t.parquet", "--out", "run", *quick, "--columns", "visits:poisson"]) == 0
    )
    fill = ["reconstruct", "run", "--part", "all", "--fill", "--out"]
    assert cli.run([*fill, "f.parquet"]) == 0
    found = pd.read_parquet("f.parquet")
    assert found.dtypes.drop("visits").equals(table.dtypes.drop("visits"))  # means of counts are fractions
    assert found.visits.dtype == "Float64"
    for name in table:
        there = table[name].notna()
        assert (found[name][there] == table[name][there]).all(), name
        assert found[name].notna().all() == (name != "since")
    assert cli.run([*fill, "f.csv"]) == 0
    text = pd.read_csv("f.csv")
    assert list(text) == list(table) and (text.city == found.city.astype(str)).all() and text.age.dtype == int
    fails(*fill, "f.png")
    assert "expected --out to be a name that ends in .csv or .tsv or .parquet" in capsys.readouterr().err
