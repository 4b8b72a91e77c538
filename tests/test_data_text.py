"""Lines of text: what is read, how it is refused, and what the commands write of a model of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from command import ordinary_process
from vae_fast import cli
from vae_fast.training import DataError, TrainingError, data, inference, load_model, text

ordinary = pytest.fixture(autouse=True)(ordinary_process)
P = text.PADDING


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines_of(dataset: data.Dataset, part: str) -> list[str]:
    assert dataset.vocabulary is not None
    x = dataset.part(part)
    assert isinstance(x, torch.Tensor)
    return dataset.vocabulary.decode(x)


def test_tokens() -> None:
    """The characters' numbers, an end, padding; a longer line is cut and has no end; what is not known is one class."""
    vocabulary = text.Vocabulary("abc", 3)
    x = vocabulary.encode(["ab", "abc", "", "cabb", "xa"])
    assert x.tolist() == [[0, 1, 3, P], [0, 1, 2, 3], [3, P, P, P], [2, 0, 1, P], [4, 0, 3, P]]
    assert vocabulary.decode(x) == ["ab", "abc", "", "cab", "\N{REPLACEMENT CHARACTER}a"]
    assert text.Vocabulary.of(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert text.bits(math.log(2) * 3, x) == pytest.approx(3 * 5 / 14)


def test_files_are_read_as_lines(tmp_path: Path) -> None:
    """A BOM, CRLF, empty lines, no newline at the end, a name without a suffix, and words that only look like lines."""
    content = "\ufeff" + "eins\r\n\r\nzw\u2028ei\n" * 9 + "  \neine\rzwei"
    dataset = data.load(write(tmp_path / "words", content))
    found = sorted(lines_of(dataset, "train") + lines_of(dataset, "test"))
    assert found == ["eine", *["eins"] * 9, "zwei", *["zw\u2028ei"] * 9]
    assert "10 empty lines of words are left out" in dataset.notes
    lines = [f"{chr(97 + i % 3)}{i % 7}" for i in range(50)]
    dataset = data.load(write(tmp_path / "a.txt", "\n".join(lines)))
    train, test = data.split_rows("", 50)
    assert lines_of(dataset, "train") == [lines[i] for i in train]
    assert lines_of(dataset, "test") == [lines[i] for i in test]


def test_the_parts_of_a_folder(tmp_path: Path) -> None:
    """The vocabulary is the training part's, whose longest line is the length."""
    for part, content in (("train", "abc\nab\n"), ("test", "abcd\nx\n"), ("valid", "b\n")):
        write(tmp_path / "set" / f"{part}.txt", content)
    dataset = data.load(str(tmp_path / "set"))
    assert dataset.vocabulary == text.Vocabulary("abc", 3)
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert [lines_of(dataset, p) for p in ("train", "test", "valid")] == [
        ["abc", "ab"],
        ["abc", unknown],
        ["b"],
    ]
    assert dataset.notes == (
        "1 of 5 lines are cut to 3 characters",
        "characters of the test part that training had not: 'x'",
    )
    assert data.load(str(tmp_path / "set"), max_length=2).shape == (3,)
    (tmp_path / "set" / "test.txt").unlink()
    assert lines_of(data.load(str(tmp_path / "set")), "test") == ["b"]  # the validation part in its place


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"one\ntw\xe9\n"}, r"a\.txt, line 2: is not UTF-8 \(byte 0xe9\)"),
        ({"a.txt": b"one\n\0\n"}, r"a\.txt, line 2: holds a character of zero"),
        ({"a.txt": b"\n \n"}, r"a\.txt: is empty: expected a sample on each line"),
        ({"a.txt": b"one"}, r"expected at least 2 samples"),
        ({"set/a.txt": b"a", "set/b.txt": b"b"}, r"expected train\.txt, and .* but got a\.txt, b\.txt"),
        ({"set/a.txt": b"a", "set/b.bin": b"b"}, r"holds no images"),
    ],
)
def test_what_is_no_text(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    paths = [write(tmp_path / name, content) for name, content in files.items()]
    source = paths[0] if len(paths) == 1 else str(tmp_path / "set")
    with pytest.raises(DataError, match=message) as caught:
        data.load(source)
    assert "\n" not in str(caught.value)


def test_train_and_what_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_fast.cli.train.UNUSED", math.inf)
    lines = ["abab", "baba", "aa", "bbb"] * 30
    source = write(tmp_path / "words.txt", "\n".join(lines))
    train = [
        "train",
        "--data",
        source,
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "30",
        "--batch-size",
        "32",
    ]
    options = ["--hidden", "16", "--latent", "2", "--lr", "2e-2", "--beta", "0.1", "--cpu"]
    assert cli.run([*train, *options, "--word-dropout", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "bits a character" in out and "--objective free_bits keeps them" in out
    run = tmp_path / "run"
    model = load_model(run)
    assert model.vocabulary == text.Vocabulary("ab", 4)
    assert model.config["word_dropout"] == 0.5 and model.config["architecture"] == "gru"
    assert len((run / "samples.txt").read_text().splitlines()) == 64
    dataset = data.load(source)

    assert cli.run(["reconstruct", str(run), "--cpu"]) == 0
    pairs = [line.split("\t") for line in (run / "reconstructed.txt").read_text().splitlines()]
    assert [a for a, _ in pairs] == lines_of(dataset, "test")
    assert sum(a == b for a, b in pairs) > 0.9 * len(pairs)  # four lines, two latents: nothing is lost

    draws = []
    for n, options in enumerate((["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--temperature", "0"])):
        out = tmp_path / f"{n}.txt"
        assert cli.run(["generate", str(run), "-n", "200", "--out", str(out), "--cpu", *options]) == 0
        draws.append(out.read_text())
    assert draws[0] == draws[1] != draws[2]
    likely, drawn = set(draws[3].splitlines()), set(draws[0].splitlines())
    assert len(likely) < len(drawn)

    capsys.readouterr()
    assert cli.run(["evaluate", str(run), "--draws", "4", "--json", "--cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    mean = np.mean([len(line) + 1 for line in lines_of(dataset, "test")])
    assert values["bits_per_character"] == pytest.approx(values["nll"] / math.log(2) / mean)
    for command, name, rows in (
        (["interpolate", "--between", "0,1", "--between", "2,3", "--steps", "5"], "interpolation", (2, 5)),
        (["traverse", "--dims", "0,1", "--steps", "3"], "traversal", (2, 3)),
        (["manifold", "-n", "3"], "manifold", (3, 3)),
    ):
        assert cli.run([command[0], str(run), *command[1:], "--cpu"]) == 0
        blocks = (run / f"{name}.txt").read_text().removesuffix("\n").split("\n\n")
        assert [len(block.split("\n")) for block in blocks] == [rows[1]] * rows[0]
    ends = lines_of(dataset, "test")
    first = (run / "interpolation.txt").read_text().split("\n")
    model_ends = model.vocabulary.decode(model.reconstruct(dataset.test_part(slice(2))["x"]))
    assert [first[0], first[4]] == model_ends and ends[0] == model_ends[0]
    for command in ("encode", "score", "embed"):
        assert cli.run([command, str(run), "--cpu"]) == 0
    mu = inference.encode(model, inference.batches(dataset)).mu
    assert np.allclose(np.load(run / "latents.npz")["mu"], mu.numpy(), atol=1e-5)

    # Other text is read by the run's vocabulary, other data are refused, and a picture is none.
    other = write(tmp_path / "other.txt", "ab\naz\nba\n")
    assert cli.run(["reconstruct", str(run), "--data", other, "--out", str(tmp_path / "o.txt"), "--cpu"]) == 0
    capsys.readouterr()
    for arguments, message in (
        (
            ["reconstruct", str(run), "--data", "digits"],
            "expected, as the model was trained on, lines of text",
        ),
        (["generate", str(run), "--out", "a.png"], "ends in .txt or .npy for this model"),
        (
            ["train", "--data", source, "--likelihood", "gaussian"],
            "--likelihood to be left out for lines of text",
        ),
        (["train", "--data", source, "--architecture", "mlp"], "where it is gru, but got mlp"),
        (["train", "--data", "digits", "--max-length", "3"], "--max-length is of lines of text"),
        (["train", "--data", "digits", "--word-dropout", "0.1"], "'gru' for --word-dropout"),
    ):
        assert cli.run([*arguments, "--cpu"]) == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    with pytest.raises(TrainingError):
        dataset.reshaped((1, 5))
