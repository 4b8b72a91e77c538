"""The commands and their options. What they do is imported when they run."""

from __future__ import annotations

from enum import StrEnum
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..nn import LIKELIHOODS
from . import trained_app
from .options import CPU, MOST, Folder, Part, PartOption, Seed, finite, numbers, sample_numbers

app = typer.Typer(
    help="Trains variational autoencoders fast.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with markup, what a help text has in square brackets is not shown
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Architecture(StrEnum):
    mlp = "mlp"
    conv = "conv"
    resnet = "resnet"
    gru = "gru"


# Those that a model of images or counts has: classes take a decoder of their own.
_LIKELIHOODS = {name: name for name in LIKELIHOODS if name != "categorical"}
LikelihoodName = StrEnum("LikelihoodName", _LIKELIHOODS)  # type: ignore[misc]
_BERNOULLI = LikelihoodName("bernoulli")


def _takers(option: str) -> str:
    """The likelihoods that take the option, and its default."""
    found = {name: signature(kind).parameters.get(option) for name, kind in LIKELIHOODS.items()}
    return " and ".join(f"{name} (default {p.default})" for name, p in found.items() if p is not None)


class Link(StrEnum):
    softmax = "softmax"
    exp = "exp"
    softplus = "softplus"


class Binarize(StrEnum):
    dynamic = "dynamic"
    static = "static"


class FreeBitsPer(StrEnum):
    dimension = "dimension"
    element = "element"
    sample = "sample"


class IwaeGradient(StrEnum):
    total = "total"
    path = "path"
    dreg = "dreg"


class MixedPrecision(StrEnum):
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class Backend(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    triton = "triton"
    reference = "reference"


def _sizes(text: str) -> tuple[int, ...]:
    return numbers(text, int, "sizes like 256,128", between=",x")


def _bounds(text: str) -> tuple[float, ...]:
    return numbers(text, float, "two numbers like -20,10", count=2)


def _spread(text: str) -> float | str:
    if text in ("learned", "feature", "decoder"):
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f'{text!r} is not a number, "learned", "feature" or "decoder"') from None


BackendOption = Annotated[Backend, typer.Option(help="Which code computes the fused ops.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vae-fast {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def show_help(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits (in scikit-learn), IDX (.gz), MNIST's folder, .npy, .npz, a folder of images or of .wav; "
            "tables: .csv, .tsv, .parquet; lines of text: .txt, a folder of train.txt and test.txt; sparse counts: "
            ".h5ad, .npz of SciPy's, .mtx."
        ),
    ] = "digits",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A TOML file with any of these options, as a run's config.toml; options of the command count first.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run. [default: runs/NAME of the data, or the next free runs/NAME-2]"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, by its own recipe. Without --out: the newest in runs/ "
            "(with --data: of that NAME).",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out, if it holds one.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 20; digits: 600]")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of all processes together. [default: 1024; digits: 4096, each image many times]"
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate. [default: 3e-3, below batch 1024 less: 1.1e-3 at 128]"),
    ] = None,
    lr_schedule: Annotated[
        str, typer.Option(metavar="NAME", help="constant, cosine or linear: to 0 at the end; or plateau.")
    ] = "constant",
    lr_factor: Annotated[
        float | None,
        typer.Option(help="Of plateau: what the rate is multiplied by where the ELBO stays. [default: 0.1]"),
    ] = None,
    lr_patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of plateau: so many evaluations without a better ELBO leave the rate. [default: 10]"
        ),
    ] = None,
    lr_warmup: Annotated[
        float, typer.Option(metavar="EPOCHS", help="Epochs in which the learning rate grows from 0.")
    ] = 0.0,
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help="Of torch: adam, adamw, nadam, radam, rmsprop or sgd.")
    ] = "adam",
    weight_decay: Annotated[
        float | None, typer.Option(help="[default: the optimizer's, 0.01 for adamw, else 0]")
    ] = None,
    clip_grad: Annotated[float | None, typer.Option(help="Largest norm of a step's gradients.")] = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of a batch, computed one after another to save memory.")
    ] = 1,
    ema: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY", help="Keep the moving average of the weights, with a decay like 0.999."
        ),
    ] = None,
    seed: Seed = 0,
    architecture: Annotated[
        Architecture,
        typer.Option(help="Networks. [default: mlp, of text gru]", show_default=False),
    ] = Architecture.mlp,
    hidden: Annotated[
        Any,
        typer.Option(
            parser=_sizes,
            metavar="N,...",
            help="Widths from x to z, or channels. [default: 400; 32,64; gru: 256]",
        ),
    ] = None,
    latent: Annotated[int, typer.Option(min=1, help="Size of z.")] = 20,
    likelihood: Annotated[LikelihoodName, typer.Option(help="p(x given z).")] = _BERNOULLI,
    variance: Annotated[
        Any,
        typer.Option(
            parser=_spread,
            metavar="V",
            help="Of gaussian: a number, learned, feature (learned for each) or decoder. [default: 1]",
        ),
    ] = None,
    scale: Annotated[
        Any,
        typer.Option(
            parser=_spread,
            metavar="S",
            help=f"Of {_takers('scale')}, as --variance.",
        ),
    ] = None,
    theta: Annotated[
        Any,
        typer.Option(
            parser=_spread,
            metavar="T",
            help="Inverse dispersion of the negative binomials, as --variance. [default: feature]",
        ),
    ] = None,
    link: Annotated[
        Link | None,
        typer.Option(
            help="From the decoder to the mean of counts. [default: softmax, times the sample's sum]"
        ),
    ] = None,
    components: Annotated[
        int | None, typer.Option(min=1, help="Of discretized_logistic_mixture. [default: 10]")
    ] = None,
    binarize: Annotated[
        Binarize | None,
        typer.Option(
            help="Of bernoulli: grey values are drawn as 0 or 1 anew in every pass, or once by the seed. "
            "[default: they stay grey]"
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(metavar="NAME", help="elbo, iwae (with --num-samples), free_bits, capacity or beta_tc."),
    ] = "elbo",
    beta: Annotated[float, typer.Option(min=0, help="Weight of the KL.")] = 1.0,
    free_bits: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Of free_bits: the KL that costs nothing. [default: 0.5]"),
    ] = None,
    free_bits_per: Annotated[
        FreeBitsPer | None,
        typer.Option(
            help="Of free_bits: what each has those nats. [default: dimension, of the batch's mean]"
        ),
    ] = None,
    capacity: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Of capacity: the KL that is aimed at in the end. [default: 25]"),
    ] = None,
    capacity_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of capacity: steps in which it grows from 0. [default: 100000]"),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of beta_tc: weight of the mutual information. [default: 1]")
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Of capacity: weight of the distance from it. [default: 1000] "
            "Of beta_tc: weight of the dimension-wise KL; --beta is the total correlation's. [default: 1]"
        ),
    ] = None,
    iwae_gradient: Annotated[
        IwaeGradient | None, typer.Option(help="Of iwae: the encoder's gradient. [default: total]")
    ] = None,
    kl_warmup: Annotated[
        float, typer.Option(metavar="EPOCHS", help="Epochs in which the KL's weight grows from 0 to --beta.")
    ] = 0.0,
    clamp: Annotated[
        Any, typer.Option(parser=_bounds, metavar="LO,HI", help="Bounds of the encoder's log-variance.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Draws of z for each x. [default: 1]")
    ] = None,
    shape: Annotated[
        Any, typer.Option(parser=_sizes, metavar="N,...", help="Read flat samples as images, such as 28,20.")
    ] = None,
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm", help="Of the hidden layers, as scvi-tools has it.")
    ] = False,
    dropout: Annotated[float, typer.Option(help="Of the encoder's hidden layers (scvi-tools: 0.1).")] = 0.0,
    batch_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="A column of an .h5ad's obs: encoder and decoder are told each sample's value of it.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KIND",
            help="A column of a table is gaussian, laplace, bernoulli, categorical, poisson, negative_binomial, "
            "zero_inflated_negative_binomial, or skip. May be given several times. [default: found out]",
        ),
    ] = None,
    split_seed: Annotated[
        int,
        typer.Option(min=0, max=2**64 - 1, help="Of the held-out fifth, where the data have no test part."),
    ] = 0,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters of a line of text, longer ones are cut. [default: the longest, 256 at most]",
        ),
    ] = None,
    sample_rate: Annotated[
        int | None,
        typer.Option(min=1, help="Of sounds, in Hz: others are resampled. [default: that of most files]"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Of a sound: longer ones are cut, shorter ones filled up. [default: the longest, 5 at most]"
        ),
    ] = None,
    word_dropout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of text: characters that the decoder does not read in training. [default: 0.3]",
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Read the data by chunks in the background. [default: where they do not fit in memory]",
        ),
    ] = None,
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp/--no-fsdp", help="Several processes share weights and optimizer, for large models."
        ),
    ] = False,
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph", help="Record a training step and replay it, on a GPU: for small models."
        ),
    ] = False,
    mixed_precision: Annotated[
        MixedPrecision | None,
        typer.Option(help="Of the networks. [default: no, or what accelerate launch says]"),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs between evaluations. [default: a hundredth of all, 100 at most]"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End after so many evaluations without a better ELBO.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Keep the weights of the best evaluation.")] = False,
    save_every: Annotated[
        int | None, typer.Option(min=1, metavar="EPOCHS", help="Keep weights in epoch-N/ as well.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="tensorboard, wandb or mlflow. May be given several times."),
    ] = None,
    backend: BackendOption = Backend.auto,
    cpu: CPU = False,
) -> None:
    """Train a VAE; write pictures, metrics and a checkpoint.

    Several processes: torchrun --nproc-per-node N -m vae_fast.cli train ...
    """
    from .train import run_training

    given = {name for name in context.params if _is_given(context, name)}
    options = {
        "data": data,
        "shape": shape,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "lr_schedule": lr_schedule,
        "lr_factor": lr_factor,
        "lr_patience": lr_patience,
        "lr_warmup": lr_warmup,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "clip_grad": clip_grad,
        "accumulate": accumulate,
        "ema": ema,
        "seed": seed,
        "architecture": architecture.value,
        "hidden": hidden,
        "latent": latent,
        "likelihood": likelihood.value,
        "variance": variance,
        "scale": scale,
        "theta": theta,
        "link": None if link is None else link.value,
        "components": components,
        "binarize": None if binarize is None else binarize.value,
        "split_seed": split_seed,
        "objective": objective,
        "beta": beta,
        "kl_warmup": kl_warmup,
        "free_bits": free_bits,
        "free_bits_per": None if free_bits_per is None else free_bits_per.value,
        "capacity": capacity,
        "capacity_steps": capacity_steps,
        "alpha": alpha,
        "gamma": gamma,
        "iwae_gradient": None if iwae_gradient is None else iwae_gradient.value,
        "clamp": clamp,
        "num_samples": num_samples,
        "batch_norm": batch_norm,
        "dropout": dropout,
        "batch_key": batch_key,
        "columns": tuple(columns or ()),
        "max_length": max_length,
        "sample_rate": sample_rate,
        "seconds": seconds,
        "word_dropout": word_dropout,
        "stream": stream,
        "fsdp": fsdp,
        "cuda_graph": cuda_graph,
        "mixed_precision": None if mixed_precision is None else mixed_precision.value,
        "evaluate_every": evaluate_every,
        "patience": patience,
        "best": best,
        "save_every": save_every,
        "track": tuple(track or ()),
    }
    run_training(
        options,
        given,
        config=config,
        out=out,
        resume=resume,
        overwrite=overwrite,
        backend=backend.value,
        cpu=cpu,
    )


@app.command()
def generate(
    folder: Folder = None,
    n: Annotated[int, typer.Option("-n", min=1, max=MOST, help="How many.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .png, or .npy for the values; of a table a .csv, .tsv or .parquet, of text a .txt. "
            "[default: generated.png, .csv or .txt in the folder]"
        ),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A value of the --batch-key that the model was trained with. [default: each in turn]",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Factor of the prior's noise; of text: of each character's draw."
        ),
    ] = 1.0,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draws of p(x given z) instead of its means.")
    ] = False,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Draw new samples from a trained model.

    They are the means of p(x given z), of a table or of text draws of it, z from the prior.
    """
    from .inference import run_generate

    run_generate(folder, n, out, seed, cpu, condition, temperature, sample)


@app.command()
def reconstruct(
    folder: Folder = None,
    data: Annotated[str | None, typer.Option(help="As in train. [default: what it was trained on]")] = None,
    part: PartOption = Part.test,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, max=MOST, help="How many. [default: all; of a picture at most 48]"),
    ] = None,
    only: Annotated[
        Any,
        typer.Option(
            parser=sample_numbers, metavar="I,...", help="These samples of the part, by number from 0."
        ),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draws of p(x given z) instead of its means.")
    ] = False,
    sample_z: Annotated[
        bool, typer.Option("--sample-z", help="At draws of q(z given x) instead of its means.")
    ] = False,
    fill: Annotated[
        bool,
        typer.Option(
            "--fill", help="Of a table: fill in what is missing, leave all else as the file has it."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .png, or .npy for the values; of a table a .csv, .tsv or .parquet, of text "
            "a .txt of originals and reconstructions. [default: reconstructed.png, .csv or .txt in the folder]"
        ),
    ] = None,
    seed: Seed = 0,
    cpu: CPU = False,
) -> None:
    """Send data through a trained model and back.

    What comes back are the means of p(x given z) at the means of q(z given x).
    """
    from .inference import run_reconstruct

    options = {"sample": sample, "sample_z": sample_z, "fill": fill}
    run_reconstruct(folder, data, part.value, n, only, out, seed, cpu, **options)


class ExportFormat(StrEnum):
    pt2 = "pt2"
    onnx = "onnx"


@app.command()
def export(
    folder: Folder = None,
    out: Annotated[Path | None, typer.Option(help="[default: the run's folder]")] = None,
    formats: Annotated[
        list[ExportFormat] | None,
        typer.Option("--format", help="Can be given twice. [default: pt2, and onnx where it is installed]"),
    ] = None,
) -> None:
    """Write encode and decode for torch.export (.pt2) and ONNX.

    They take any batch. Each is run and compared with the model, ONNX where onnxruntime is installed.
    """
    from .export import run_export

    run_export(folder, out, None if formats is None else tuple(f.value for f in formats))


for command in trained_app.COMMANDS:
    app.command()(command)


@app.command()
def doctor() -> int:
    """Say what is built, what is used, and why something is not."""
    from .doctor import run_doctor

    return run_doctor()


# Every option, --help too, goes on to the benchmarks, which are a package of their own.
@app.command(
    short_help="Measure against eager PyTorch, torch.compile and JAX.",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> int:
    try:
        import vae_fast_benchmarks
    except ModuleNotFoundError as error:
        if error.name != "vae_fast_benchmarks":
            raise
        from ..training.errors import TrainingError

        raise TrainingError(
            "vae_fast_benchmarks is not installed: reinstall vae_fast, or run python -m benchmarks in a checkout"
        ) from None
    return vae_fast_benchmarks.main(context.args, context.command_path)


def _is_given(context: typer.Context, name: str) -> bool:
    source: Any = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
