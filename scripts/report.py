"""Write RUN/report.html, one page that says whether to believe a trained run, and its findings as RUN/diagnosis.json.

python scripts/report.py runs/digits-001
python scripts/report.py runs/mnist-001 --data_dir data --device cuda

The page is one file without network access: a verdict in words, the numbers with their errors, all checks, pictures,
and the latent space to explore. It uses the last evaluation of the run.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys

from pyrovae.page import Fit, make_page
from pyrovae.runs import make_run_parser, open_run, parse_flags, run_script, write_json, write_whole
from pyrovae.runs.report import compare_to_baselines


def main() -> int:
    """Write report.html and diagnosis.json into the run folder."""
    parser = make_run_parser(prog="report.py", description=__doc__)
    args = parse_flags(parser, sys.argv[1:])

    run, vae, data = open_run(args, bits=True)
    config, (summary, values) = run.config(args.trust_imports), run.evaluation()
    log_p, measure = values["log_marginal"], summary["base_measure"]
    baselines = compare_to_baselines(config, data, log_p, base_measure=measure, split=summary["split"])
    page = make_page(Fit.of_run(run, config, vae, data, baselines, seed=args.seed))
    write_json(run.path / "diagnosis.json", page.diagnosis)
    write_whole(run.path / "report.html", page.text.encode())
    diagnosis = page.findings.diagnosis
    print(diagnosis.headline)
    for check in diagnosis.warnings:
        print(f"  {check.fault}: {check.sentence}\n    try: {check.advice}")
    print(f"wrote {run.path / 'report.html'} and {run.path / 'diagnosis.json'}")
    return 0


if __name__ == "__main__":
    run_script(main)
