"""What the scripts print on bad input: one line on stderr, and nothing is written; and their help."""

import os
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from script_helpers import SCRIPTS, Script, assert_refused, call, help_of

from pyrovae.runs import find_device, parse_training
from pyrovae.runs.options import options_text, parts_text
from pyrovae.runs.registry import BASES, known_parts

BAD_FLAGS = {
    "--prior MixturPrior": "did you mean MixturePrior",
    "--likelihood Bernouli": "did you mean BernoulliLikelihood",
    "--encoder Normal": "did you mean NormalEncoder",
    "--network MPL": "did you mean MLP",
    "--optimizer Adm": "did you mean Adam",
    "--elbo TraceELBO": "did you mean Trace_ELBO",
    "--prior nomodule.Prior": "module 'nomodule' is neither installed nor in this directory",
    "--prior mymodule.StudentPrior": "did you mean StudentTPrior",
    "--prior mymodule.dist": "dist is no subclass of",
    "--prior.num_components 3": "StandardNormalPrior has no such option",
    "--prior MixturePrior --prior.num_component 3": "did you mean num_components",
    "--lrr 3": "did you mean --lr, --prior or --lr_warmup?",
    "--lr fast": "--lr fast: expected a number above 0",
    "--epochs 0": "--epochs 0: expected a whole number, at least 1",
    "--latent_dim -2": "--latent_dim -2: expected a whole number, at least 1",
    "--device tpu7": "--device tpu7: no such device; use --device auto, cpu, cuda or cuda:0",
    "--data nofile.npy": "no such file",
    "--data both.npz:count": "counts",
    "--data both.npz:counts": "--likelihood BinomialLikelihood --likelihood.total_count 8, or",
    "--data both.npz:reals": "must be named: --likelihood LaplaceLikelihood, or --likelihood NormalLikelihood",
    "--data both.npz:counts --likelihood BinomialLikelihood --likelihood.total_count 3": "whole numbers from 0 to 3",
    "--data both.npz:reals --likelihood PoissonLikelihood": "of LogPoisson, whole numbers, at least 0;",
    "--data both.npz:reals --binarize dynamic": "--binarize dynamic needs grey values",
    "--data grey.npy --likelihood BernoulliLikelihood": "ContinuousBernoulliLikelihood",
    "--data infinite.npy --likelihood NormalLikelihood": "infinite",
    "--data short.npy": "short.npy",
    "--network ConvNet --network.shape [9,9]": "give the image's shape",
    "--data both.npz:reals --likelihood NormalLikelihood --likelihood.scale -1": "scale must be a positive number",
    "--optimizer SGD --lr 1e30": "lower the learning rate",
    "--config nofile.yaml": "no such file",
    "--config bad.yaml": "is no YAML file",
    "--config list.yaml": "is no configuration",
    "--config unknown.yaml": "did you mean epochs",
    "--config sly.yaml": "--trust_imports os",
    "--config nested.yaml": "nested.yaml: prior.num_components is Thing; expected a whole number",
    "--config hidden.yaml": "hidden.yaml: optimizer.betas is [evil.Thing, 0.9]; expected a list of 2 numbers",
    "--config lookalike.yaml": "--trust_imports torchevil",
    "--config unloaded.yaml": "no such prior",
    "--config arguments.yaml": "must be names and values",
    "--config extra.yaml": "expected class_path and init_args alone",
    "--config none.yaml": "prior must be a name",
    "--config own.yaml --trust_imports broken": "importing broken fails: NameError",
    "--num_particles 0": "--num_particles 0: expected a whole number, at least 1",
    "--num_particles 100000000000000000000": "lower num_particles",
    "--patience 0": "--patience 0: expected a whole number, at least 1, or null",
    "--seed 99999999999999999999": "expected a whole number from 0 to 4294967295",
    "--network.hidden 200": "--network.hidden 200: expected a list of whole numbers, as in [20,10]",
    "--network.hidden [-3]": "hidden must be at least 1",
    "--prior broken.Prior": "importing broken fails: NameError: name 'nonsense' is not defined (broken.py, line 2)",
    "--prior mymodule.LazyPrior": "a part cannot be made: AttributeError",
    "--prior mymodule.WidePrior": "the parts do not work together",
    "--resume nofolder": "no run folder",
    "--resume straight --seed 3": "--seed: a resumed run keeps its configuration; omit the flag",
    "--out taken": "--out taken already exists and is not an empty folder; choose another",
    "--kl_weight.beta 4": "no kl_weight is chosen; give one first, as in --kl_weight Beta --kl_weight.beta 4",
    "--program.direction up": "no program is chosen; give one first, as in --program TwoLayerVAE",
    "--prior.num_components 3 --prior MixturePrior": "--prior.num_components precedes --prior MixturePrior",
    "--prior.num_components 4": "MixturePrior or VampPrior has it, to be named first with --prior",
    "--prior MixturePrior --prior.num-components 3": "did you mean num_components?",
    "--prior MixturePrior --prior.num_components": "--prior.num_components needs a value: a whole number",
    "--prior MixturePrior --prior.num_components x": "x: expected a whole number; see --prior.help MixturePrior",
    "--prior.init_args 3": "expected {NAME: VALUE}; or give each option as --prior.NAME VALUE",
    "--prior ConditionalNormalPrior --prior.network MPL": "--prior.network MPL: no such part; did you mean MLP",
    "--prior FlowPrior --prior.kind naf": "--prior.kind naf: expected nsf or maf; did you mean nsf?",
    "--likelihood NormalLikelihood --likelihood.scale x": "expected a number, or global, dimension or network",
    "--optimizer.betas 3": "--optimizer.betas 3: expected a list of 2 numbers",
    "--optimizer.lr 3": "Adam has no such option; use --lr",
    "--elbo Trace_ELBO --elbo.num_particles many": "--elbo.num_particles many: expected a whole number, at least 1",
    "--elbo Trace_ELBO --elbo.vectorize_particles maybe": "expected true or false",
    "--kl_weight LinearWarmup --kl_weight.epochs long": "--kl_weight.epochs long: expected a number",
    "--kl_weight 0.5": "use --kl_weight Beta --kl_weight.beta 0.5 for a constant weight",
    "--kl_weight none": "no such kl_weight; --help_parts kl_weight lists them",
    "--prior pyrovae.Prior": "Prior is abstract; use a subclass, which --help_parts prior lists",
    "--latent-dim 3": "--latent-dim: no such flag; did you mean --latent_dim?; see --help",
    "--resume straight --trust-imports mymodule": "did you mean --trust_imports?",
    "--zzz 3": "--zzz: no such flag; see --help",
    "-epochs 3": "-epochs: no such flag; flags begin with two dashes",
    "stray": "'stray' follows no flag; give every value after its flag",
    "--network.hidden [20, 20]": "--network.hidden [20,: a list has no spaces and ends in a bracket",
    "--network.hidden [20,x]": "--network.hidden [20,x]: expected a list of whole numbers",
    "--network.activation rel": "did you mean relu?; see --network.help MLP",
    "--device gpu": "--device gpu: no such device; use --device auto, cpu, cuda or cuda:0",
    "--epochs": "--epochs needs a value: a whole number, at least 1",
    "--data": "--data needs a value: digits, mnist, PATH.npy, PATH.npz:key, or a table: PATH.csv, .tsv or .parquet",
    "--epochs --lr 1": "--epochs needs a value: a whole number, at least 1",
    "--epochs 1e3": "--epochs 1e3: expected a whole number, at least 1",
    "--epochs=": "--epochs '': expected a whole number, at least 1",
    "--lr inf": "--lr inf: expected a finite number above 0",
    "--lr -1e-3": "--lr -1e-3: expected a number above 0",
    "--lr_schedule Cosine": "--lr_schedule Cosine: no such lr_schedule; did you mean CosineAnnealingLR?",
    "--lr_schedule StepLR": "StepLR needs --lr_schedule.step_size, a whole number; give it",
    "--lr_schedule StepLR --lr_schedule.step_size 0": "--lr_schedule StepLR cannot be used: ZeroDivisionError",
    "--lr_schedule MultiStepLR --lr_schedule.milestones [2,x]": "expected a list of whole numbers, as in [20,10]",
    "--lr_schedule ExponentialLR --lr_schedule.gamma -1": "leads to the learning rate -0.001",
    "--lr_schedule OneCycleLR --lr_schedule.total_steps 3": "--lr_schedule.total_steps 3: the training has up to",
    "--lr_schedule BurdaLR --lr_schedule.rungs 0": "rungs must be at least 1, got 0",
    "--lr_schedule.T_max 5": "give one first, as in --lr_schedule CosineAnnealingLR --lr_schedule.T_max 5",
    "--lr_warmup -1": "--lr_warmup -1: expected a number, at least 0",
    "--lr_warmup inf": "lr_warmup must be a finite number of epochs, at least 0, got inf",
    "--average 1": "--average 1: expected a number from 0 to below 1 or null",
    "--clip 0": "--clip 0: expected a number above 0 or null",
    "--stream maybe": "--stream maybe: expected true or false",
    "--proposal gide": "did you mean guide?",
    "--binarize grey": "--binarize grey: expected dynamic, static or none, or null",
    "--config zero.yaml": "zero.yaml: epochs is 0; expected a whole number, at least 1",
    "--config fast.yaml": "fast.yaml: lr is fast; expected a number above 0",
    "--config many.yaml": "many.yaml: prior.num_components is x; expected a whole number",
    "--config option.yaml": "option.yaml: prior.num_component: MixturePrior has no such option",
    "--help_parts priors": "--help_parts priors: no such kind of parts; did you mean prior or program?",
    "--prior.help MixturPrior": "did you mean MixturePrior",
    "--epochs.x 3": "--epochs.x: --epochs has no options; give its value alone, as in --epochs VALUE",
    "--lr.help": "--lr.help: --lr has no options",
    "--network.hidden.x 3": "--network.hidden.x: --network.hidden has no options",
    "--device meta": "--device meta is not available (",
    "--config straight": "straight is a folder; give a file, such as straight/config.yaml",
    "--config=": "--config is an empty text; expected config.yaml to start from",
    "--resume=": "--resume is an empty text; expected run folder to resume",
    "--out=": "--out is an empty text; expected new run folder",
    "--out bits.npy/x": "--out bits.npy/x cannot be written (a file has the name of a folder); choose another",
    "--out /proc/x": "--out /proc/x cannot be written (No such file or directory); choose another folder",
    "--out deep/er/run --optimizer SGD --lr 1e30": "lower the learning rate",
    "--network TransposedConvNet": "TransposedConvNet is a decoder; use --network ConvNet",
    "--network pyrovae.RecurrentDecoder": "RecurrentDecoder is a decoder; use --network RecurrentNet",
    "--network pyrovae.nn.ResidualTransposedConvNet": "is a decoder; use --network ResidualConvNet",
    "--prior ConditionalNormalPrior --prior.network.in_features 3": "no network is chosen; give its class first",
    "--prior MixturePrior --prior.init_args {a": "--prior.init_args {a: expected a number",
    "--latent_dim null": "--latent_dim null: expected a whole number, at least 1",
    "--kl_weight GECO": "--kl_weight GECO needs --kl_weight.tolerance, a number; give it",
    "--config null.yaml": "null.yaml: latent_dim is null; expected a whole number, at least 1",
    "--config empty.yaml": "empty.yaml: data is ''; expected a text",
    "--config default.yaml": "default.yaml: epochs is true; expected a whole number, at least 1",
    "--config geco.yaml": "geco.yaml: kl_weight GECO needs tolerance, a number; give it",
    "--config bf16.yaml": "bf16.yaml: precision is bf16; expected full or bfloat16; did you mean bfloat16?",
    "--config maybe.yaml": "maybe.yaml: stream is maybe; expected true or false",
    "--config guidee.yaml": "guidee.yaml: proposal is guidee; expected default,",
    "--config ten.yaml": "ten.yaml: epochs is ten; expected a whole number",
    "--config jit.yaml": "the tag 'tag:yaml.org,2002:timestamp' is refused",
    "--network torch.nn.Linear": "--network torch.nn.Linear: no such network; ",
    "--prior mymodule.torch.nn.Linear": "module 'mymodule.torch' is neither installed nor in this directory",
    "--optimizer Adam --optimizer.betas [2,3]": "--optimizer Adam cannot take a step with these options: Invalid beta",
    "--optimizer ASGD --optimizer.foreach true --optimizer.differentiable true": "see --optimizer.help ASGD",
    "--optimizer SGD --optimizer.nesterov true": "Nesterov momentum requires a momentum and zero dampening; see",
    "--elbo TraceEnum_ELBO": "no latent is enumerated; use --elbo Trace_ELBO",
    "--prior CategoricalPrior": "a distribution of one-hot vectors, but NormalEncoder is one of real vectors",
    "--encoder MixtureEncoder --encoder.num_components 0": "error: num_components must be at least 1, got 0",
    "--data both.npz:counts --likelihood CategoricalLikelihood --likelihood.num_classes 2": "numbers from 0 to 1;",
    "--data both.npz:counts --likelihood CategoricalLikelihood --likelihood.num_classes 0": "num_classes must be at",
    "--latent_dim 1000000000000": "error: this machine is out of memory; lower the numbers of data",
    "--prior ConditionalNormalPrior --prior.network pyrovae.MLP": "--prior.network MLP needs "
    "--prior.network.in_features and --prior.network.out_features; give them",
    "--prior ConditionalNormalPrior --prior.network pyrovae.MLP --prior.network.in_features x": "--prior.network."
    "in_features x: expected a whole number",
}


@pytest.fixture(scope="module")
def traps(place, straight):
    np.save(place / "grey.npy", np.random.default_rng(1).random((40, 6)))
    infinite = np.ones((40, 3))
    infinite[7, 2] = np.inf
    np.save(place / "infinite.npy", infinite)
    (place / "short.npy").write_bytes((place / "bits.npy").read_bytes()[:-9])
    (place / "bad.yaml").write_text("a: [")
    (place / "list.yaml").write_text("- 1")
    (place / "unknown.yaml").write_text("epoch: 3")
    (place / "sly.yaml").write_text("prior: os.system")
    (place / "nested.yaml").write_text(
        "prior: {class_path: pyrovae.MixturePrior, init_args: {num_components: {class_path: evil.Thing}}}"
    )
    (place / "evil.py").write_text("import pathlib; pathlib.Path('was-here').touch()")
    adam = "optimizer: {class_path: torch.optim.Adam, init_args: {betas: '[evil.Thing, 0.9]'}}"
    (place / "hidden.yaml").write_text(adam)
    (place / "lookalike.yaml").write_text("prior: torchevil.X")
    (place / "unloaded.yaml").write_text("prior: torch.utils.tensorboard.Prior")
    (place / "arguments.yaml").write_text("prior: {class_path: MixturePrior, init_args: 3}")
    (place / "extra.yaml").write_text("prior: {class_path: MixturePrior, dict_kwargs: {a: 1}}")
    (place / "none.yaml").write_text("prior: null")
    (place / "zero.yaml").write_text("epochs: 0")
    (place / "fast.yaml").write_text("lr: fast")
    (place / "many.yaml").write_text("prior: {class_path: MixturePrior, init_args: {num_components: x}}")
    (place / "option.yaml").write_text("prior: {class_path: MixturePrior, init_args: {num_component: 3}}")
    wrong = {
        "null": "latent_dim: null",
        "empty": "data: ''",
        "default": "epochs: true",
        "geco": "kl_weight: GECO",
        "bf16": "precision: bf16",
        "maybe": "stream: maybe",
        "guidee": "proposal: guidee",
        "ten": "epochs: ten",
        "jit": "elbo: {class_path: Trace_ELBO, init_args: {jit_options: 2001-01-01}}",
    }
    for name, text in wrong.items():
        (place / f"{name}.yaml").write_text(text)
    (place / "own.yaml").write_text("prior: broken.Prior")
    (place / "broken.py").write_text("import torch\nnonsense")
    (place / "taken").mkdir()
    (place / "taken/file").touch()
    return place


def whats_there(folder):
    passing = {"__pycache__", "mymodule.imported"}
    return sorted(path for path in folder.rglob("*") if not passing & {*path.parts})


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_train_refuses_an_invalid_command_in_one_line_and_writes_nothing(traps, capsys, monkeypatch, flags):
    monkeypatch.chdir(traps)
    before = whats_there(traps)
    code, err = call(capsys, monkeypatch, "train", *flags.split())
    assert_refused("train", code, err, BAD_FLAGS[flags])
    assert whats_there(traps) == before


OF_OTHER_SCRIPTS = {
    "evaluate": "RUN is required: run folder of train.py",
    "sample": "RUN is required: run folder of train.py",
    "report": "RUN is required: run folder of train.py",
    "compare": "RUNS is required: run folders of train.py, or folders of all folds, two or more",
    "compare straight straight": "two different run folders or more are needed, got straight straight",
    "swap": "--out is required: folder of the runs and of table.json",
    "betas --jobs 2": "--out is required",
    "evaluate straight --target_std_error 0": "--target_std_error 0: expected a number above 0 or null",
    "evaluate straight --split tests": "expected train, validation or test; did you mean test?",
    "evaluate straight --chunk-size 3": "--chunk-size: no such flag; did you mean --chunk_size?",
    "evaluate straight --device gpu": "--device gpu: no such device",
    "sample straight --num_samples 0": "--num_samples 0: expected a whole number, at least 1",
    "estimators straight --guide 20": "--guide 20: expected a list of whole numbers, at least 1, as in [20,10]",
    "benchmark --parts [floor,sampler]": "a list of floor, growth, steps, sampling, evidence, annealing or processes",
    "swap --out new --seeds [-1]": "expected a list of whole numbers from 0 to 4294967295, as in [0,1]",
    "swap --out new --seeds []": "--seeds []: the list is empty; give at least one value",
    "swap --out new --seeds [0,0]": "--seeds [0,0]: 0 is given twice; give each value once",
    "swap --out= --seeds [0]": "--out is an empty text; expected folder of the runs",
    "bounds --out new --draws []": "--draws []: the list is empty",
    "bounds --out new --seeds [1,1]": "--seeds [1,1]: 1 is given twice",
    "gradients --out new.png --particles []": "--particles []: the list is empty",
    "gradients --out nosuch/new.png": "--out nosuch/new.png: no such folder nosuch; make it, or choose another",
    "betas --out new --betas []": "--betas []: the list is empty",
    "benchmark --parts []": "--parts []: the list is empty",
    "benchmark --device gpu": "--device gpu: no such device; use --device auto, cpu, cuda or cuda:0",
    "benchmark --json nosuch/new.json": "--json nosuch/new.json: no such folder nosuch",
    "benchmark --parts [steps] --run nosuch": "--run: only the parts evidence and annealing measure a run; omit it",
    "benchmark --rounds 1": "--rounds must be at least 2, got 1",
    "compare straight straight/../straight": "two different run folders or more are needed",
    "compare straight other --figure nosuch/x.png": "--figure nosuch/x.png: no such folder nosuch",
    "compare straight other --figure taken": "--figure taken is a folder; give the name of a file",
    "evaluate straight --split.x 3": "--split.x: --split has no options",
    "evaluate straight --data_dir=": "--data_dir is an empty text",
    "sample straight --num_samples 1000000000000000": "--num_samples 1000000000000000: at most 1,000,000",
    "swap --out new --ladder [0]": "expected a list of whole numbers, at least 1",
    "swap --out new --only flow": "did you mean flow-prior",
    "swap --out new --folds 2 --ladder [10]": "--ladder: with --folds all data are evaluated once",
    "swap --out new -- --seed 9": "--seed after --: this script sets it; give --seeds before --",
    "bounds --out new -- --elbo Trace_ELBO": "--elbo after --: this script sets it; the table compares objectives",
    "betas --out new -- --kl_weight Beta": "--kl_weight after --: this script sets it; give --betas before --",
    "published vampprior -- --seed=7": "--seed after --: this script sets it; give --seed or --seeds before --",
}


@pytest.mark.parametrize("command", OF_OTHER_SCRIPTS)
def test_every_other_script_refuses_an_invalid_command_in_one_line(traps, capsys, monkeypatch, command):
    monkeypatch.chdir(traps)
    before = whats_there(traps)
    script, *arguments = command.split()
    code, err = call(capsys, monkeypatch, script, *arguments)
    assert_refused(script, code, err, OF_OTHER_SCRIPTS[command])
    assert len(err.strip().splitlines()) == 1
    assert whats_there(traps) == before


def test_an_empty_name_of_a_run_is_refused(capsys, monkeypatch):
    code, err = call(capsys, monkeypatch, "evaluate", "")
    assert_refused("evaluate", code, err, "RUN is an empty text; expected run folder of train.py")


def test_a_target_of_the_standard_error_needs_two_draws(traps, capsys, monkeypatch):
    monkeypatch.chdir(traps)
    code, err = call(capsys, monkeypatch, "evaluate", "straight", "--num_particles", 1, "--target_std_error", 0.1)
    assert_refused("evaluate", code, err, "target_std_error needs num_particles of at least 2, got 1")


def test_a_device_without_a_backend_is_refused_without_the_list_of_the_others(capsys, monkeypatch):
    def zeros(*args, **kwargs):
        raise NotImplementedError("Could not run 'aten::empty.memory_format' ... 'MPS' is only available for ... CPU")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ValueError, match=r"^--device mps is not available \(this PyTorch is built without it\); use"):
        find_device("mps")


STUDIES = {
    "swap": "training of standard-0 failed: --epochs 0: expected a whole number, at least 1",
    "bounds": "training of VAE-1-0 failed: --epochs 0",
    "betas": "training of beta-0.1 failed: --epochs 0",
}


@pytest.mark.parametrize("script", STUDIES)
@pytest.mark.thin(1)
def test_a_study_leaves_no_folder_if_its_training_is_refused(traps, capsys, monkeypatch, script):
    def by_fork(command, **options):
        training = Script(Path(command[1]).with_suffix(""), command[2:], cwd=Path.cwd(), strict=False)
        training.wait()
        ended = {"returncode": training.returncode, "communicate": lambda: (None, training.stderr)}
        return SimpleNamespace(**ended, terminate=lambda: None)

    monkeypatch.chdir(traps)
    monkeypatch.setattr("pyrovae.runs.sweep.subprocess", SimpleNamespace(Popen=by_fork, DEVNULL=None, PIPE=None))
    code, err = call(capsys, monkeypatch, script, "--out", "table/new", "--", "--epochs", 0)
    assert_refused(script, code, err, STUDIES[script])
    assert not (traps / "table").exists()


SWITCHES = {"describe", "edges", "fresh", "full", "projector", "stream", "weighted"}  # flags that may stand alone
SCRIPT_NAMES = sorted(file.stem for file in SCRIPTS.rglob("*.py") if "run_script(main)" in file.read_text())


@pytest.mark.parametrize("script", SCRIPT_NAMES)
@pytest.mark.thin(7)
def test_every_flag_names_itself_if_it_is_misspelled_or_has_no_value(tmp_path, capsys, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    flags = re.findall(r"^  --(\w+) ", help_of(capsys, monkeypatch, script), re.MULTILINE)
    assert flags or script.startswith("benchmark_")
    for flag in flags:
        dashed = flag.replace("_", "-") if "_" in flag else f"{flag}x"
        code, err = call(capsys, monkeypatch, script, f"--{dashed}", 1)
        assert (code, len(err.splitlines())) == (1, 1)
        assert f"--{dashed}: no such flag; did you mean --{flag}" in err
        if flag in SWITCHES:
            code, err = call(capsys, monkeypatch, script, f"--{flag}", "maybe")
            assert_refused(script, code, err, f"--{flag}")
        elif flag != "help_parts":
            code, err = call(capsys, monkeypatch, script, f"--{flag}")
            assert (code, len(err.splitlines())) == (1, 1)
            assert f"--{flag} needs a value: " in err
    assert not list(tmp_path.iterdir())


def unwrapped(text):
    return re.sub(r"\n {10,}", " ", text)


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_help_fits_on_one_screen_and_has_no_typing_expression(capsys, monkeypatch, script):
    text = help_of(capsys, monkeypatch, script)
    assert len(text.splitlines()) <= 90
    assert max(map(len, text.splitlines())) <= 120
    for line in re.findall(r"^  --.*", unwrapped(text), re.MULTILINE):
        assert re.search(r"default: \S|required\)$", line), line
    assert not re.search(r"PositiveInt|Literal|Optional|Callable|Union|class_path|\| ?null|\bNone\b", text)
    if script == "train":
        groups = re.findall(r"^(\w+):$", text, re.MULTILINE)
        assert groups == ["data", "table", "model", "objective", "optimisation", "evaluation", "run", "help"]
        assert "labels (one-hot), PATH.npy, PATH.npz:key, or columns of a table (or null;" in text
        assert "CPU threads (whole number, at least 1, or null; default: 1 for small batches" in text
        assert "python scripts/train.py --resume" in text


def printed(capsys, monkeypatch, *arguments):
    """What train.py prints before it exits with code 0, its long lines unwrapped."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
    assert not stop.value.code
    return unwrapped(capsys.readouterr().out)


def test_help_parts_lists_each_part_with_a_line_and_no_base_class(capsys, monkeypatch):
    text = printed(capsys, monkeypatch, "--help_parts")
    parts = (
        "MixturePrior",
        "NormalLikelihood",
        "NormalEncoder",
        "ConvNet",
        "Trace_ELBO",
        "Adam",
        "TwoLayerVAE",
        "Beta",
    )
    for name in parts:
        assert len(re.findall(rf"^  {name} +\w.*\.$", text, re.MULTILINE)) == 1, name
    listed = re.findall(r"^  (\w+) ", text, re.MULTILINE)
    for base in ("Prior", "Likelihood", "Encoder", "Network", "Module", "ELBO", "KLWeight", "Optimizer"):
        assert base not in listed
    assert not {"EncodedPrior", "LocationScaleLikelihood", "Linear", "TwoLayerModel"} & set(listed)
    programs = printed(capsys, monkeypatch, "--help_parts", "program")
    assert re.findall(r"^  (\w+) ", programs, re.MULTILINE) == ["TwoLayerVAE", "MixtureVAE"]
    assert printed(capsys, monkeypatch, "--program.help") == programs


def test_help_of_a_part_lists_its_options_in_words(capsys, monkeypatch):
    text = printed(capsys, monkeypatch, "--prior.help", "ConditionalNormalPrior")
    assert re.search(r"--prior.num_covariates +\w.* \(a whole number; default: 1\)", text)
    assert re.search(r"--prior.network .*; null for an `MLP` \(a network or null; default: null\)", text)
    assert len(text.splitlines()) == 4  # and no list of torch.nn
    assert "latent_dim" not in text  # which the script gives
    text = printed(capsys, monkeypatch, "--likelihood.help=BinomialLikelihood")
    assert re.search(r"--likelihood.total_count .*; default: from the data and the flags\)", " ".join(text.split()))
    assert "no options" in printed(capsys, monkeypatch, "--prior.help", "StandardNormalPrior")
    text = printed(capsys, monkeypatch, "--optimizer.help", "Adam")
    assert re.search(r"--optimizer.weight_decay .*\(a number; default: 0\)", text)
    assert not {"lr", "differentiable"} & set(re.findall(r"--optimizer.(\w+)", text))
    assert re.search(r"--optimizer.betas +coefficients used", text)  # described on the line below its name
    text = printed(capsys, monkeypatch, "--elbo.help", "Trace_ELBO")
    options = ["num_particles", "max_plate_nesting", "vectorize_particles", "strict_enumeration_warning"]
    assert re.findall(r"--elbo\.(\w+) +[A-Z]", text) == options
    text = printed(capsys, monkeypatch, "--prior.help", "FlowPrior")
    assert "Transforms of the flow: nsf (splines) or maf (affine) (default: nsf)" in text


@pytest.mark.parametrize("kind", BASES)
def test_help_of_every_part_has_short_lines_without_markup_and_pythons_words(kind):
    for name in known_parts(kind):
        text = options_text(kind, name)
        assert max(map(len, text.splitlines())) <= 120
        assert not re.search(r"\b(None|True|False)\b|``|`_|:\w+:`", text), text
    assert max(map(len, parts_text(kind).splitlines())) <= 120


def test_null_is_no_path_of_a_configuration_or_a_run():
    config = parse_training(["--config", "null", "--resume", "null", "--epochs", "3"])
    assert (config.config, config.resume, config.epochs) == (None, None, 3)


def test_values_that_begin_with_a_dash_need_no_equals_sign():
    config = parse_training(["--elbo", "RenyiELBO", "--elbo.alpha", "-.inf"])
    assert config.elbo.init_args.alpha == float("-inf")


def test_options_of_a_part_with_arbitrary_arguments_are_left_to_the_part(traps, monkeypatch):
    monkeypatch.chdir(traps)
    (traps / "open_ended.py").write_text(
        "from pyrovae import MixturePrior\n"
        "class OpenPrior(MixturePrior):\n"
        "    def __init__(self, latent_dim: int, **kwargs):\n"
        "        super().__init__(latent_dim, **kwargs)\n"
    )
    config = parse_training(["--prior", "open_ended.OpenPrior", "--prior.num_components", "3"])
    assert config.prior.init_args.num_components == 3
    (traps / "open_ended.py").unlink()


def test_every_script_is_run_by_a_test():
    text = "".join(file.read_text() for file in Path(__file__).parents[1].rglob("test_*.py"))
    for script in SCRIPTS.rglob("*.py"):
        if "run_script(main)" not in script.read_text():
            continue  # a part of another
        assert any(call in text for call in (f'("{script.stem}"', f', "{script.stem}"', f"/{script.name}"))
        assert os.access(script, os.R_OK)
