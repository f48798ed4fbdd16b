"""Encode data by a trained run: posterior means and standard deviations of the latents of each row, as CSV.

python scripts/encode.py runs/digits-001 test
python scripts/encode.py runs/digits-001 new.npy --weighted true
python scripts/encode.py runs/survey-001 new.csv --draws 10 --out codes/
python scripts/encode.py runs/mnist-001 test --projector true     # tensors.tsv and metadata.tsv for TensorBoard

FILE is train, validation or test for a split of the run's own data, or PATH.npy, PATH.npz:KEY or a table. encoding.csv
has a line per row, with its label where the data have labels (a table's column, or the key "labels" of an .npz).
encoding_draws.csv has the draws of --draws. The codes are the guide's; --weighted true corrects them by importance
weights, and adds log p(x), its standard error, effective sample size and k-hat.
"""

import startup  # noqa: F401  # first, since it ends failing imports without a traceback

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from pyrovae.densities import evaluating, isolated_rng
from pyrovae.runs import (
    check_folder,
    find_device,
    make_run_parser,
    open_run,
    parse_flags,
    run_script,
    with_name_lists,
    write_projector,
)
from pyrovae.runs.encodings import ENCODING_FILES, encode_data, flat_latents, read_data, write_encoding
from pyrovae.runs.table_files import add_table_flags, check_not_input
from pyrovae.runs.tables import khat_line


def main() -> int:
    """Write the codes, and say where."""
    parser = make_run_parser(prog="encode.py", description=__doc__)
    parser.add_argument("file", type=str, help="train, validation, test, or a file of new data")
    parser.add_argument("--weighted", type=bool, default=False, help="correct the guide by importance weights")
    parser.add_argument("--num_particles", type=PositiveInt, default=1000, help="draws K per row")
    parser.add_argument("--draws", type=NonNegativeInt, default=0, help="draws per row to write")
    parser.add_argument("--covariates", type=str | None, default=None, help="array of covariates (default: null)")
    parser.add_argument("--projector", type=bool, default=False, help="write tensors.tsv and metadata.tsv too")
    add_table_flags(parser)
    args = parse_flags(parser, with_name_lists(sys.argv[1:]))

    out = Path(args.out or args.run)
    check_folder("--out", out)
    check_not_input(args.file, out, ENCODING_FILES)
    run, vae, data = open_run(args)
    given = {"covariates": args.covariates, "unseen": args.unseen, "na_values": args.na_values}
    new = read_data(run, data, args.file, **given)
    options = {"weighted": args.weighted, "num_particles": args.num_particles, "num_draws": args.draws}
    with isolated_rng(args.seed), evaluating(vae):
        code = encode_data(vae, new, find_device(args.device), **options)
    out.mkdir(parents=True, exist_ok=True)
    paths = write_encoding(out, new, code, num_draws=args.draws)
    if args.projector:
        paths += write_projector(out, flat_latents(code.mean, 1), new.labels)
    source = "the posterior, by importance weights" if args.weighted else "the guide q(z|x)"
    print(f"codes of {len(new.x):,} rows of {args.file}, from {source}")
    if code.log_marginal is not None:
        print(khat_line(code.log_marginal.khat, args.num_particles))
    print(f"wrote {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    run_script(main)
