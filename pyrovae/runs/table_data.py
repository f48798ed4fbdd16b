"""Data of a run from its flags: images and arrays by `load_data`, tables by `read_table`, with their columns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from pyrovae.columns import DROPPED_BY_FLAG, NUMERIC, Column, Columns
from pyrovae.data import NA_VALUES, Data, Fold, Table, load_data, parse_yaml, read_columns, read_table
from pyrovae.runs.options import FROM_DATA, KNOWN_OPTIONS
from pyrovae.runs.registry import part_class
from pyrovae.runs.specs import make_arguments, read_part
from pyrovae.runs.words import near, texts

COLUMNS = "columns.yaml"  # in a run folder
OF_COLUMNS = ("num_classes", "num_levels", "resolution")  # arguments of likelihoods that follow from a column
SUFFIXES = (".csv", ".tsv", ".tab", ".parquet", ".pq")
_ONLY_TABLES = ("describe", "columns", "na_values", "label", "weights", "group", "split", "mask_extra")
_KEYS = tuple(field.name for field in fields(Column) if field.name not in ("name", "arguments"))
_LISTS = ("levels", "na_values")
_COMPUTED = ("origin", "low", "high", "resolution", "grid", "centre", "spread", "log_centre", "log_spread", "missing")

Change = tuple[str, str, Any]
"""Name of a column, key of its attribute (or likelihood.ARGUMENT), and value."""


def is_table(name: str) -> bool:
    """Whether a source of data is a file of a table."""
    return Path(name).suffix.lower() in SUFFIXES


def take_column_flags(argv: Sequence[str]) -> tuple[list[str], list[Change]]:
    """Take the flags --columns.NAME.KEY VALUE out of a command line.

    A name may have dots and spaces; the last key of a column ends it. A name in quotes may even end like a key.

    Returns:
        The other tokens, and the changes in their order.

    Raises:
        ValueError: If a flag has no key of a column, or no value.
    """
    others: list[str] = []
    changes: list[Change] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--columns."):
            others.append(token)
            continue
        flag, equals, value = token.partition("=")
        if not equals:
            if not tokens or tokens[0].startswith("--"):
                raise ValueError(f"{flag} needs a value, as in --columns.income.kind positive")
            value = tokens.pop(0)
        changes.append((*_name_and_key(flag), value))
    return others, [(name, key, _value(name, key, value)) for name, key, value in changes]


def _name_and_key(flag: str) -> tuple[str, str]:
    text = flag.removeprefix("--columns.")
    keys = "|".join(_KEYS)
    found = re.fullmatch(r'"([^"]+)"\.(.+)', text) or re.fullmatch(rf"(.+)\.((?:{keys})|likelihood\.[^\W\d]\w*)", text)
    if found is None or found[2].partition(".")[0] not in _KEYS:
        key = text.rpartition(".")[2]
        raise ValueError(
            f"{flag}: expected --columns.NAME.KEY VALUE, such as --columns.income.kind positive; {near(key, _KEYS)}"
        )
    return found[1], found[2]


def _value(name: str, key: str, text: str) -> Any:
    if key in ("name", "kind", "role", "format", "reason", "likelihood"):
        return text
    try:
        value = parse_yaml(text)
    except ValueError:
        value = text
    if key in _LISTS:
        whole = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        return value if whole else texts(text)
    return value


def training_data(flags: Namespace) -> Data:
    """Load the data of a new run.

    Args:
        flags: Result of `parse_training`.

    Raises:
        ValueError: If the data cannot be used, or a flag does not fit their kind.
        FileNotFoundError: If the file is missing.
    """
    if is_table(flags.data):
        table = training_table(flags)
        return Data.of(table, labelled=takes_labels(flags) and table.labels is not None)
    _check_no_flags_of_tables(flags)
    return load_data(
        flags.data,
        data_dir=flags.data_dir,
        binarize=flags.binarize,
        split_seed=flags.split_seed,
        fold=fold_of(flags),
        num_validation=flags.num_validation,
        stream=flags.stream,
        covariates=flags.covariates,
        download=flags.config is None,  # a file from elsewhere starts none
    )


def training_table(flags: Namespace) -> Table:
    """Read the table of a new run with the columns and the roles that its flags name.

    Raises:
        ValueError: As `read_table`, or if a flag does not fit tables.
        FileNotFoundError: If the file is missing.
    """
    if not is_table(flags.data):
        _check_no_flags_of_tables(flags)
    if flags.binarize not in (None, "none") or flags.stream:
        flag = "--stream" if flags.stream else f"--binarize {flags.binarize}"
        raise ValueError(f"{flag} is for arrays and images, got the table {flags.data}; omit it")
    if flags.num_validation is not None:
        raise ValueError("--num_validation is for arrays and images; name the splits of a table's rows by --split")
    options: dict[str, Any] = {
        "na_values": (*NA_VALUES, *flags.na_values),
        "covariates": _names_in(flags.covariates),
        "label": flags.label,
        "weights": flags.weights,
        "group": flags.group,
        "split": flags.split,
        "unseen": flags.unseen,
        "split_seed": flags.split_seed,
        "fold": fold_of(flags),
    }
    columns = None if flags.columns is None else read_columns(flags.columns)
    if columns is not None and flags.new_numbers:
        columns = without_numbers(columns)
    if flags.column_changes:
        if columns is None:  # what is missing changes what is guessed
            codes = {name: tuple(value) for name, key, value in flags.column_changes if key == "na_values"}
            columns = without_numbers(read_table(flags.data, na_values_by_column=codes, **options).columns)
        columns = changed(columns, flags.column_changes)
    return read_table(flags.data, columns=columns, **options)


def fold_of(config: Namespace) -> Fold | None:
    """Return the fold that is the test set, from 1, and the number of folds; None for a single split.

    Raises:
        ValueError: If one of them is missing.
    """
    if config.folds is None and config.fold is None:
        return None
    if config.fold is None:
        raise ValueError(f"--folds {config.folds} needs --fold, the number of the fold that is the test set")
    if config.folds is None:
        raise ValueError(f"--fold {config.fold} needs --folds, the number of folds")
    return config.fold, config.folds


def takes_labels(config: Namespace) -> bool:
    """Whether the programs have an argument `labels`: those of a class with `takes_labels = True`."""
    program = config.program
    return program is not None and bool(getattr(part_class("program", program.class_path), "takes_labels", False))


def _check_no_flags_of_tables(flags: Namespace) -> None:
    given = [name for name in _ONLY_TABLES if flags.get(name)] + ["unseen"] * (flags.unseen != "refuse")
    if given or flags.column_changes:
        raise ValueError(f"--{(given or ['columns'])[0]} needs a table, PATH.csv, .tsv or .parquet, got {flags.data}")


def _names_in(covariates: str | None) -> list[str]:
    found = (covariates or "").strip().removeprefix("[").removesuffix("]").split(",")
    return [name.strip() for name in found if name.strip()]


def without_numbers(columns: Columns) -> Columns:
    """Return columns whose numbers are to be computed anew, from the training rows of another split or table."""
    plain = columns.to_dict()
    return Columns.from_dict(
        {name: {key: value for key, value in entry.items() if key not in _COMPUTED} for name, entry in plain.items()}
    )


def changed(columns: Columns, changes: Iterable[Change]) -> Columns:
    """Return columns with changes from the command line. Numbers of a changed column are to be computed anew.

    A column of another kind has the likelihood of that kind, unless one is given after it. If rows are split by another
    column, all numbers are to be computed anew.

    Raises:
        ValueError: If there is no such column, or a value is not valid.
    """
    changes = list(changes)
    if any(key == "role" and value in ("group", "split") for _, key, value in changes):
        columns = without_numbers(columns)
    plain = columns.to_dict()
    for name, key, value in changes:
        if name not in plain:
            raise ValueError(f"--columns.{name}.{key}: the table has no such column; {near(name, plain)}")
        entry = {old: kept for old, kept in plain[name].items() if old not in _COMPUTED}
        if key.startswith("likelihood."):
            entry["arguments"] = {**entry.get("arguments", {}), key.removeprefix("likelihood."): value}
        else:
            entry[key] = value
        if key == "kind" and plain[name].get("kind") != value:
            entry = {old: kept for old, kept in entry.items() if old not in ("likelihood", "arguments", "reason")}
        if key == "role" and value == "drop":
            entry = {"kind": "drop", "reason": DROPPED_BY_FLAG}
        plain[name] = entry
    return Columns.from_dict(plain)


def table_parts(config: Namespace, columns: Columns, trusted: Iterable[str] | None) -> Mapping[str, Any]:
    """Return the makers of likelihoods by column, for `MixedLikelihood`.

    The likelihood of the configuration, if any, is that of every numeric column that names none.

    Args:
        config: Resolved configuration.
        columns: Columns of the table.
        trusted: Modules of the user that the columns may name; None for all.

    Raises:
        ValueError: If a column names no likelihood, one that is not trusted, or an argument that it does not have.
    """
    parts: dict[str, Any] = {}
    if config.likelihood is not None:
        given = part_class("likelihood", config.likelihood.class_path)
        arguments = make_arguments("likelihood", config.likelihood)
        known = {name: value for name, value in arguments.items() if name not in OF_COLUMNS or value != FROM_DATA}
        parts |= dict.fromkeys(NUMERIC, partial(given, **known))
    trusted = None if trusted is None else tuple(trusted)
    for column in columns.data:
        if column.likelihood is not None:
            where = f"column {column.name!r}"
            spec = {"class_path": column.likelihood, "init_args": dict(column.arguments)}
            checked = read_part("likelihood", spec, source=where, trusted=trusted)
            for name, value in vars(checked.init_args).items() if checked else ():
                if value == FROM_DATA and name in KNOWN_OPTIONS and name not in OF_COLUMNS:
                    raise ValueError(
                        f"{where}: {column.likelihood} needs {name}; give it, as in --columns.{column.name}.likelihood."
                        f"{name} VALUE"
                    )
            parts[column.name] = part_class("likelihood", column.likelihood, trusted=trusted, flag=where)
    return parts


def trusted_modules(flags: Namespace) -> list[str]:
    """List the modules that a command line trusts: those of --trust_imports, and of likelihoods that it names."""
    named = [value.rpartition(".")[0] for _, key, value in flags.get("column_changes") or () if key == "likelihood"]
    return [*flags.trust_imports, *filter(None, named)]
