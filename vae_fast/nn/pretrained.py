"""Models in a folder: model.safetensors and config.json, without pickle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from .describe import Described, NotDescribed, describe, is_known, make
from .files import replace_bytes

if TYPE_CHECKING:
    from .vae import VAE

CONFIG, MODEL = "config.json", "model.safetensors"
FORMAT = 1  # of config.json; a higher one is refused


class Pretrained(Described):
    """`save_pretrained` and `from_pretrained` of a model, which take safetensors."""

    def save_pretrained(self, folder: Path | str, *, omit: Sequence[str] = ()) -> None:
        """config.json, which says how the model is made, and model.safetensors, its tensors. Each replaces an older
        file in one step.

        Parts of vae_fast.nn and common layers of torch have a description. Others are left out by `omit`, such as
        ["encoder"]: `from_pretrained` is then given them.

        Raises:
            ValueError: a part that has no description, or that was changed after it was made.
        """
        config = self.to_config(omit)
        _check_made_again(self, config, omit)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, cast(nn.Module, self).state_dict(), config)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        **parts: Any,
    ) -> Self:
        """The model of a folder, or of "owner/name" on the Hugging Face hub (takes huggingface_hub), in eval mode.

        parts: those that are not to be made from the config, by the name of the argument: encoder=MyEncoder(). Their
            tensors are read too.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: it holds no model; a newer vae_fast saved it; tensors and config do not fit.
        """
        folder = _find(folder, revision)
        tensors, config, source = read(folder)
        if unknown := [name for name in parts if name not in (known := config.get("arguments", {}))]:
            raise TypeError(f"expected parts to be some of {', '.join(known)}, but got {', '.join(unknown)}")
        with torch.device(device):
            model = build(config, source, parts)
        if not isinstance(model, cls):
            raise ValueError(f"{source}: is the config of a {type(model).__name__}, not of a {cls.__name__}")
        fill(model, {name: t.to(device) for name, t in tensors.items()}, folder / MODEL, with_dtypes=True)
        return model.eval()

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, omit: Sequence[str] = ()) -> None:
        """What `save_pretrained` writes, to a repository of the Hugging Face hub. Takes huggingface_hub."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, omit=omit)
            api = HfApi(library_name="vae_fast")
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder)

    def to_config(self, omit: Sequence[str] = ()) -> dict[str, Any]:
        """What config.json holds."""
        from .. import __version__

        try:
            described = describe(self, omitted=omit)
        except NotDescribed as error:
            part = error.path.partition(".")[0]
            advice = f"leave it out with omit=[{part!r}] and give it to from_pretrained, or " if part else ""
            raise ValueError(
                f"{error}, which a config cannot describe: {advice}save model.state_dict()"
            ) from None
        if unknown := [name for name in omit if name not in described["arguments"]]:
            names = ", ".join(described["arguments"])
            raise ValueError(f"expected omit to have some of {names}, but got {', '.join(unknown)}")
        return {"format": FORMAT, "vae_fast": __version__, **described}


def config_of_known_parts(model: VAE) -> dict[str, Any]:
    """`to_config` that omits each part which has no description or was changed after it was made; of a model of
    another class its name alone."""
    from .. import __version__

    head, omit = {"format": FORMAT, "vae_fast": __version__}, list[str]()
    while True:
        try:
            config = {**head, **describe(model, omitted=omit)}
            at = _different_tensor(model, config, omit)
        except NotDescribed as error:
            at = error.path
        if at is None:
            return config
        part = at.partition(".")[0].partition("[")[0]
        if part in omit or part not in model.arguments():
            return {**head, "class": type(model).__name__, "arguments": {}}
        omit.append(part)


def write(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    # The tensors carry their config: a config.json of another model cannot be taken for theirs.
    save_tensors(folder / MODEL, state, {"config": json.dumps(config)})
    replace_bytes(folder / CONFIG, f"{json.dumps(config, indent=2)}\n".encode())


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    known: set[int] = set()
    for name, t in tensors.items():  # tied weights, which safetensors refuses: each name gets its own
        place = t.untyped_storage().data_ptr()
        tensors[name] = t.clone() if place in known else t
        known.add(place)
    # save_file has a temporary file of its own, with a name that nobody could clean up after a kill.
    replace_bytes(path, save(tensors, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: truncated or damaged ({first_line(error)})") from None


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """The tensors, the config, and the file that holds it."""
    source = folder / MODEL
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not source.exists():
        raise ValueError(f"{folder}: holds no {MODEL}, so it is not a checkpoint")
    tensors, metadata = load_tensors(source)
    text = metadata.get("config")
    try:
        if text is None:
            source = folder / CONFIG
            text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{folder}: holds no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: cannot be read ({first_line(error)})") from None
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ValueError(f"{source}: is not the config of a model ({first_line(error)})") from None
    return tensors, config, source


def build(config: dict[str, Any], source: Path, parts: dict[str, Any] | None = None) -> VAE:
    """The model that the config describes, without its tensors. A config without a class is that of
    `vae_fast.training.HubVAE`."""
    from .vae import VAE

    version = config.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{source}: was saved by vae_fast {config.get('vae_fast')} in format {version}, and this one reads "
            f"formats up to {FORMAT}: a newer vae_fast loads it"
        )
    if "class" not in config and not is_known("HubVAE"):
        raise ValueError(f"{source}: is the model of a run: import vae_fast.training before")
    try:
        model = make(config if "class" in config else {"class": "HubVAE", "arguments": config}, "", parts)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{source}: is not the config of a model ({first_line(error)})") from None
    if not isinstance(model, VAE):
        raise ValueError(f"{source}: is not the config of a model (a {type(model).__name__})")
    return model


def fill(model: nn.Module, tensors: dict[str, Tensor], source: Path, *, with_dtypes: bool = False) -> None:
    """Gives the model's tensors these values, and these dtypes. Raises ValueError."""
    try:
        if with_dtypes:
            for name, t in chain(model.named_parameters(), model.named_buffers()):
                if name in tensors:
                    t.data = t.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        complaint = (lines[1] if len(lines) > 1 else lines[0]).rstrip(". ")
        raise ValueError(f"{source}: the weights do not fit the config ({complaint})") from None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def _check_made_again(model: Any, config: dict[str, Any], omit: Sequence[str]) -> None:
    """ValueError where the config makes another model, because a layer was replaced or parametrized after it was made:
    better now than when the file is all that is left."""
    different = _different_tensor(model, config, omit)
    if different is not None:
        part = different.partition(".")[0]
        raise ValueError(
            f"{different} is not as the arguments of {part} make it: {part} was changed after it was made, which a "
            "config cannot describe: save model.state_dict()"
        )


def _different_tensor(model: Any, config: dict[str, Any], omit: Sequence[str]) -> str | None:
    """The name of a tensor that the config's model lacks, or has in another shape."""
    given = {name: model.arguments()[name] for name in omit}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # which draws all the same
        again = build(json.loads(json.dumps(config)), Path(CONFIG), given)
    shapes, made = ({n: t.shape for n, t in m.state_dict().items()} for m in (model, again))
    return next((name for name in {**shapes, **made} if shapes.get(name) != made.get(name)), None)


def _find(folder: Path | str, revision: str | None) -> Path:
    path = Path(folder)
    if path.is_dir() or not isinstance(folder, str) or folder.count("/") != 1:
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{folder}: no such folder; from the hub it takes: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(folder, revision=revision, allow_patterns=[CONFIG, MODEL]))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the system
        raise FileNotFoundError(
            f"{folder}: no such folder, and the hub has none to give ({first_line(error)})"
        ) from None
