"""`vae-fast explore` in headless Chromium: what is clicked, dragged and downloaded is what the functions give.

The page asks no other machine for anything, and neither does the command.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("panel")
sync_api = pytest.importorskip("playwright.sync_api")


from command import save_digits_run
from vae_fast.nn import attribute_direction
from vae_fast.training import HubVAE, checkpoint, data, inference, labels, load_model

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 90_000  # milliseconds
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
# The command's process says which other machine it asks: sitecustomize, imported at its start.
GUARD = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "localhost", "::1"):
        print("asks", host, file=sys.stderr, flush=True)
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on digits and two latents."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    folder.mkdir()
    save_digits_run(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of counts and a condition, and nothing of its data."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    folder.mkdir()
    torch.manual_seed(0)
    model = HubVAE((30,), likelihood="poisson", hidden=(8,), latent=12, conditions=("dry", "wet"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    checkpoint.save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.fail("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        # --no-sandbox: root has none.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextmanager
def served(folder: Path, tmp_path: Path, *options: str) -> Iterator[str]:
    """The command at work, and its page's address. It ends by Ctrl-C."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    command = [sys.executable, "-m", "vae_fast", "explore", str(folder), "--cpu", "--no-browser", *options]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line or process.communicate()[1]
            yield address[0]
            listening = [
                c.laddr for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"
            ]
            assert {place.ip for place in listening} == {"127.0.0.1"}
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


@contextmanager
def visited(browser: Any, address: str, size: dict[str, int]) -> Iterator[Any]:
    """The page, laid out and drawn. It logs no error and asks no other machine."""
    wrong: list[str] = []
    with browser.new_context(viewport=size) as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or wrong.append(r.url))
        page.goto(address)
        page.wait_for_selector("#between figcaption")
        page.wait_for_function("document.querySelectorAll('section').length > 2")
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert wrong == []


def download(page: Any, name: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_text(f"↓ {name}", exact=True).click()
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes()


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name).click()


def array(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(io.BytesIO(content)))


def changed(page: Any, section: str, act: Callable[[], Any], what: str = "figure") -> None:
    """Does it, and waits until what the section shows is another."""
    shown = page.locator(f"#{section} {what}")
    before = shown.inner_html()
    act()
    sync_api.expect(shown).not_to_have_js_property("innerHTML", before, timeout=WAIT)


def shows(page: Any, section: str, *texts: str) -> None:
    """Waits until the caption says so."""
    for text in texts:
        sync_api.expect(page.locator(f"#{section} figcaption")).to_contain_text(text, timeout=WAIT)


def drag(page: Any, section: str, number: int, share: float) -> None:
    """A slider's handle from the middle, without letting it go."""
    box = page.locator(f"#{section} .noUi-target").nth(number).bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share, y, steps=5)


def assert_decodes(page: Any, model: HubVAE, name: str = "sample", condition: Tensor | None = None) -> Tensor:
    """The sample that is downloaded is that of the z that is downloaded, which is returned."""
    before = b""
    while (content := download(page, "z.npy")) != before:  # another was drawn in between
        before, samples = content, array(download(page, f"{name}.npy"))
    z = array(content)
    torch.testing.assert_close(samples, model.decode(z, condition=condition).detach(), rtol=1e-5, atol=1e-6)
    return z


def test_the_page_of_a_run(browser: Any, digits: Path, tmp_path: Path) -> None:
    model, images = load_model(digits), data.load("digits")
    known = labels.find(images, "digits")
    assert known is not None
    mu = model.encode(images.test)[0].detach()
    with served(digits, tmp_path) as address, visited(browser, address, WIDE) as page:
        text = page.inner_text("header")
        for fact in ("digits", "bernoulli", "2, 2 in use", "359 test samples", "test ELBO"):
            assert fact in text

        # A slider, while it is dragged.
        assert assert_decodes(page, model).tolist() == [[0, 0]]
        changed(page, "sample", lambda: drag(page, "latents", 1, 0.75))
        page.mouse.up()
        z = assert_decodes(page, model)
        assert (z != 0).sum() == 1 and 1 < z.max() < 3
        seen = page.get_attribute("#sample img", "src").partition(",")[2]
        picture = download(page, "sample.png")
        assert base64.b64decode(seen) == picture and Image.open(io.BytesIO(picture)).width >= 336

        # The map: a click to the right is a larger z0, and the same z1.
        box = page.locator("#map .bk-Canvas, #map .bk-canvas-events").first.bounding_box()
        points = []
        for share in (0.45, 0.75):
            place = box["x"] + box["width"] * share, box["y"] + 120
            changed(page, "sample", lambda place=place: page.mouse.click(*place))
            shows(page, "sample", "a point of the map")
            points.append(assert_decodes(page, model)[0])
        assert points[1][0] > points[0][0] + 0.1
        torch.testing.assert_close(points[1][1], points[0][1])
        field = page.locator("#map input[type=text], #map input[type=number]").first
        field.fill("7")
        field.press("Enter")
        shows(page, "sample", f"test sample 7, label {known[7]}")
        torch.testing.assert_close(assert_decodes(page, model), mu[7:8])

        # Towards another label.
        page.locator("#towards select").select_option("4")
        shows(page, "towards", "from test sample 7", "with label 4")
        is_train = labels.find(images, "digits", "train")
        assert is_train is not None
        direction = attribute_direction(
            model.encode(images.train)[0].detach(), torch.from_numpy(is_train == "4")
        )
        way = inference.steered(mu[7:8], direction, 2.0, 8)[0]
        want = model.decode(way).detach()
        torch.testing.assert_close(array(download(page, "steered.npy")), want, rtol=1e-4, atol=1e-5)

        # From what is shown to a draw of the prior, along both ways.
        press(page, "Start at the decoded sample")
        press(page, "Draw from the prior")
        shows(page, "sample", "a draw from the prior, seed 0")
        end = assert_decodes(page, model)
        torch.testing.assert_close(
            model.decode(end).detach(), model.generate(1, generator=torch.Generator().manual_seed(0))
        )
        press(page, "End at the decoded sample")
        shows(page, "between", "from test sample 7", "to a draw from the prior, seed 0")
        for spherical in (False, True):
            if spherical:
                changed(page, "between", lambda: press(page, "Great circle"))
            way = inference.interpolation(mu[7:8], end, 8, spherical=spherical)[0]
            want = model.decode(way).detach()
            torch.testing.assert_close(array(download(page, "way.npy")), want, rtol=1e-4, atol=1e-5)
        with visited(browser, address, NARROW) as narrow:
            assert narrow.locator("#sample img").bounding_box()["width"] > 250


def test_a_model_without_its_data(browser: Any, alone: Path, tmp_path: Path) -> None:
    model = load_model(alone)
    with served(alone, tmp_path) as address, visited(browser, address, NARROW) as page:
        assert "the data are not there" in page.inner_text("header")
        assert page.locator("#map, #towards").count() == 0
        page.get_by_text("2 more").click()
        sync_api.expect(page.locator("#latents .noUi-target")).to_have_count(12)
        press(page, "Draw from the prior")
        shows(page, "sample", "a draw from the prior, seed 0")
        samples = []
        for condition in (0, 1):
            if condition:
                changed(page, "sample", lambda: page.locator("#sample select").select_option("wet"), "table")
            samples.append(array(download(page, "sample.npy")))
            z = assert_decodes(page, model, condition=torch.tensor([condition]))
        top = int(samples[1].argmax())
        first = page.locator("#sample table tr").first.inner_text().split()
        assert first == ["feature", str(top), f"{samples[1][0, top]:.4g}"]
        assert samples[0].ne(samples[1]).any() and z.shape == (1, 12)
