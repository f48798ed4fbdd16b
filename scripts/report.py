"""Write RUN/report.html, one page that says whether to believe a trained run, and its findings as RUN/diagnosis.json.

python scripts/report.py runs/digits-001
python scripts/report.py runs/mnist-001 --data_dir data --device cuda
python scripts/report.py runs/digits-001 --figures figures --figure_format pdf    # each picture as a file too
python scripts/report.py runs/digits-001 --foreign letters.npy                    # other data, to be told apart

The page is one file without network access: a verdict in words, the numbers with their errors, all checks, pictures,
and the latent space to explore. It uses the last evaluation of the run.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pyrovae.densities import check_support
from pyrovae.page import Fit, make_page
from pyrovae.plots import to_pdf, to_png, to_svg
from pyrovae.runs import (
    check_folder,
    find_device,
    make_run_parser,
    open_run,
    parse_flags,
    run_script,
    with_name_lists,
    write_json,
    write_whole,
)
from pyrovae.runs.encodings import read_data
from pyrovae.runs.report import compare_to_baselines
from pyrovae.runs.table_files import add_table_flags

_RENDERERS = {"png": to_png, "svg": to_svg, "pdf": to_pdf}


def main() -> int:
    """Write report.html and diagnosis.json."""
    parser = make_run_parser(prog="report.py", description=__doc__)
    parser.add_argument(
        "--figures", type=str | None, default=None, help="folder to write each picture into too (default: null)"
    )
    parser.add_argument(
        "--figure_format", type=Literal["png", "svg", "pdf"], default="png", help="format of these files"
    )
    parser.add_argument(
        "--foreign",
        type=str | None,
        default=None,
        help="file of foreign data, an array or a table, against which to test log p(x) (default: null)",
    )
    parser.add_argument(
        "--covariates", type=str | None, default=None, help="array of covariates of the foreign data (default: null)"
    )
    add_table_flags(parser)
    args = parse_flags(parser, with_name_lists(sys.argv[1:]))
    if args.foreign is None and (args.covariates, args.unseen, args.na_values) != (None, "refuse", []):
        raise ValueError("--covariates, --unseen and --na_values are of the data of --foreign; give it, or omit them")
    out = Path(args.out or args.run)
    check_folder("--out", out)
    if args.figures is not None:
        check_folder("--figures", args.figures)

    run, vae, data = open_run(args, bits=True)
    config, (summary, values) = run.config(args.trust_imports), run.evaluation()
    log_p, measure = values["log_marginal"], summary["base_measure"]
    baselines = compare_to_baselines(config, data, log_p, base_measure=measure, split=summary["split"])
    fit = Fit.of_run(run, config, vae, data, baselines, seed=args.seed)
    if args.foreign is not None:
        given = {"covariates": args.covariates, "unseen": args.unseen, "na_values": args.na_values}
        other = read_data(run, data, args.foreign, flag="--foreign", **given)
        fit = replace(fit, others={Path(args.foreign).name: (other.x, other.conditions)})
        device = find_device(args.device)
        conditions = {name: value.to(device) for name, value in other.conditions.items()}
        check_support(vae.model, other.x.to(device), guide=vae.guide, **conditions)
    page = make_page(fit)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "diagnosis.json", page.diagnosis)
    write_whole(out / "report.html", page.text.encode())
    if args.figures is not None:
        folder = Path(args.figures)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in page.figures().items():
            write_whole(folder / f"{name}.{args.figure_format}", _RENDERERS[args.figure_format](figure))
    diagnosis = page.findings.diagnosis
    print(diagnosis.headline)
    for check in diagnosis.warnings:
        print(f"  {check.fault}: {check.sentence}\n    try: {check.advice}")
    print(f"wrote {out / 'report.html'} and {out / 'diagnosis.json'}")
    if args.figures is not None:
        print(f"wrote {len(page.pictures)} pictures into {args.figures}")
    return 0


if __name__ == "__main__":
    run_script(main)
