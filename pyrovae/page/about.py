"""Settings of a run in words."""

from jsonargparse import Namespace

from pyrovae.data import Data
from pyrovae.runs import Run


def about_run(run: Run, config: Namespace, data: Data) -> list[tuple[str, str]]:
    """Describe a run in pairs of a name and a value."""
    about = run.manifest["data"]
    parts = [
        (kind, str(config[kind].class_path).rpartition(".")[2])
        for kind in ("program", "prior", "likelihood", "encoder", "network", "elbo", "kl_weight", "optimizer")
        if config.get(kind) is not None and hasattr(config[kind], "class_path")
    ]
    sizes = ", ".join(f"{about[f'num_{split}']:,} {split}" for split in ("train", "validation", "test"))
    shape = " x ".join(map(str, about["shape"]))
    return [
        ("data", f"{about['name']}: {sizes}; {shape} numbers each, {about.get('num_covariates', 0)} covariates"),
        ("binarisation", about["binarize"]),
        ("latents", f"{config.latent_dim}"),
        *parts,
        ("epochs", f"{config.epochs} at most, batches of {config.batch_size}"),
        ("seed", f"{config.seed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(run.manifest["versions"].items()))),
    ]
