"""Files to tensors: sources, splits and binarisation.

    dataset     `Data`: a data set in three splits
    sources     arrays of digits, MNIST and files
    load        `load_data`: checks, covariates, splits of arrays and images
    binarize    dynamic and static binarisation
    folds       the folds of cross-validation
    tables      `read_table`: mixed columns and missing cells, kinds, units, splits
    ampute      deletion of cells for studies of missing data
    untrusted   files of a stranger: regular files, YAML of plain values

A datum is a float32 vector; its original shape is stored separately. Loading uses its own random generators and leaves
the global random state unchanged. Only `Binarize`, a part of training, draws from the global generator.
"""

from pyrovae.data.ampute import Mechanism, ampute
from pyrovae.data.binarize import EVALUATION_SEED, Binarize
from pyrovae.data.dataset import Data
from pyrovae.data.folds import Fold, fold_rows, fold_splits
from pyrovae.data.load import load_data
from pyrovae.data.sources import read_array
from pyrovae.data.table_files import RawTable, read_raw
from pyrovae.data.table_text import columns_yaml, original, read_columns, write_csv, write_csv_rows
from pyrovae.data.tables import NA_VALUES, Table, read_table
from pyrovae.data.untrusted import FILE_LIMIT, check_size, open_regular, parse_yaml, read_bytes, what_is

__all__ = [
    "EVALUATION_SEED",
    "FILE_LIMIT",
    "NA_VALUES",
    "Binarize",
    "Data",
    "Fold",
    "Mechanism",
    "RawTable",
    "Table",
    "ampute",
    "check_size",
    "columns_yaml",
    "fold_rows",
    "fold_splits",
    "load_data",
    "open_regular",
    "original",
    "parse_yaml",
    "read_array",
    "read_bytes",
    "read_columns",
    "read_raw",
    "read_table",
    "what_is",
    "write_csv",
    "write_csv_rows",
]
