"""The columns of a table and their values, from texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pyrovae.columns import DROPPED_BY_FLAG, LEVELLED, Column, Columns, shown
from pyrovae.data.cells import Cells, convert, parse, without_missing
from pyrovae.data.folds import Fold, fold_splits
from pyrovae.data.guess import Question, guess, levels_of
from pyrovae.data.moments import complete
from pyrovae.data.sources import unknown
from pyrovae.data.table_files import RawTable
from pyrovae.data.table_splits import check_groups, draw_split, read_split

_FEW_LABELS = 20  # distinct numbers of a label


@dataclass
class Built:
    """Columns of a table, their values in original units or codes of levels, and what belongs to the rows."""

    columns: Columns
    values: dict[str, np.ndarray]
    splits: np.ndarray
    group: np.ndarray | None
    unseen: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: dict[str, list[Question]] = field(default_factory=dict)


def build(
    raw: RawTable,
    schema: Columns | None,
    *,
    roles: Sequence[tuple[str, str]],
    na_values: tuple[tuple[str, ...], tuple[str, ...]],
    by_column: Mapping[str, tuple[str, ...]],
    unseen: str,
    split_seed: int,
    fold: Fold | None,
    new_data: bool,
) -> Built:
    """Build the columns and values of a table. See `read_table` for the arguments.

    Args:
        raw: Table of texts, whose missing cells are replaced by None in place.
        schema: Columns that the table must have; None to guess.
        roles: Names and their roles.
        na_values: Texts of missing cells in every column, and those among them that are not the default.
        by_column: Further ones by column.
        unseen: Treatment of unknown levels.
        split_seed: Random seed of the split.
        fold: Fold whose rows are the test rows; None for a single split.
        new_data: Whether all rows are test rows of a complete schema.
    """
    _check_names(raw, roles, by_column)
    codes = {name: (*na_values[1], *by_column.get(name, ())) for name in raw.columns}
    if schema is not None:
        schema = _with_roles(schema, roles)
        codes = {
            name: tuple(dict.fromkeys((*codes[name], *(schema[name].na_values if name in schema else ()))))
            for name in raw.columns
        }
    without_missing(raw, na_values[0], dict(codes))
    of_role = dict(roles) if schema is None else {column.name: column.role for column in schema}
    notes = {"": [Question(note, "check the names of the columns") for note in raw.notes.get("", ())]}
    if schema is not None:
        _check_columns(raw, schema, new_data)
        notes[""] += _ignored(raw, schema)
    group = _group(raw, of_role, new_data)
    splits = _splits(raw, of_role, group, split_seed, fold, new_data)
    built = Built(Columns((Column("x", "drop"),)), {}, splits, group, notes=notes)
    found = []
    for name in raw.columns if schema is None else schema.names:
        role = of_role.get(name, "data")
        again = schema is not None and not new_data and name in raw.columns and _is_to_guess_again(schema[name])
        role = "data" if again else role
        needed = role not in ("drop", "group", "split") and not (role == "weight" and new_data)
        if name in raw.columns and needed:
            given = None if schema is None or again else schema[name]
            column = _read(raw, name, role, given, built, unseen)
            if schema is not None and again and column.kind != "drop":
                notes.setdefault(name, []).insert(0, _guessed_again(schema[name], column))
        elif role == "weight" and schema is not None and name in raw.columns:
            column = schema[name]
            notes[""] += _read_weights(raw, column, built)
        else:
            column = Column(name, "category", role=role) if schema is None else schema[name]
            if role == "drop" and name in raw.columns and column.missing is None and not new_data:
                column = dataclasses.replace(column, missing=_missing(raw, name, splits == 0))
        if codes.get(name):
            column = dataclasses.replace(column, na_values=codes[name])
        found.append(column)
    built.columns = Columns(tuple(found))
    return built


def _is_to_guess_again(column: Column) -> bool:
    """Whether a column was dropped for its values, and has na_values, which may change them.

    Columns that a user drops have no reason, and those of a run have their share of missing cells.
    """
    guessed = column.reason not in ("", DROPPED_BY_FLAG)
    return column.kind == "drop" and guessed and bool(column.na_values) and column.missing is None


def _guessed_again(before: Column, column: Column) -> Question:
    codes = ", ".join(map(repr, before.na_values))
    return Question(
        f"it was dropped ({before.reason}), but without {codes} it is read as {column.kind}",
        "to drop it all the same, write kind: drop without a reason",
    )


def _read_weights(raw: RawTable, column: Column, built: Built) -> list[Question]:
    """Read the case weights of new rows. Cells that are no weights leave the rows unweighted, with a note."""
    try:
        _read(raw, column.name, "weight", column, built, "refuse")
    except ValueError as error:
        built.values.pop(column.name, None)
        return [Question(str(error), "so the rows are not weighted")]
    return []


def _check_names(raw: RawTable, roles: Sequence[tuple[str, str]], by_column: Mapping[str, tuple[str, ...]]) -> None:
    for name in [*(name for name, _ in roles), *by_column]:
        if name not in raw.columns:
            raise ValueError(f"{raw.name}: " + unknown("column", name, list(raw.columns)))
    names = [name for name, _ in roles]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"column {name!r:.80} has two roles; name it once among covariates, label, ...")


def _with_roles(schema: Columns, roles: Sequence[tuple[str, str]]) -> Columns:
    for name, role in roles:
        if name not in schema:
            raise ValueError(unknown("column", name, schema.names) + ", which the columns name")
        for other in () if role == "covariate" else schema.of_role(role):
            if other.name != name:
                raise ValueError(f"columns {other.name!r:.80} and {name!r:.80} both have the role {role}; choose one")
        column = schema[name]
        kind = "category" if column.kind == "drop" and role in ("group", "split") else column.kind
        if kind == "drop":
            raise ValueError(f"column {name!r:.80} is dropped, so it is no {role}; write another kind in the columns")
        schema = schema.replace(name, role=role, kind=kind, reason="")
    return schema


def _check_columns(raw: RawTable, schema: Columns, new_data: bool) -> None:
    optional = {"drop", "label", "weight", "group", "split"} if new_data else {"drop"}
    for column in schema:
        if column.name not in raw.columns and column.role not in optional:
            role = "" if column.role == "data" else f" ({column.role})"
            raise ValueError(
                f"{raw.name} has no column {column.name!r:.80}{role}, which the columns name; its columns are "
                f"{', '.join(f'{name:.40}' for name in list(raw.columns)[:20])}"
            )
    for role in ("label", "weight", "group", "split"):
        if len(schema.of_role(role)) > 1:
            names = " and ".join(repr(column.name) for column in schema.of_role(role))
            raise ValueError(f"columns {names} both have the role {role}; choose one")


def _ignored(raw: RawTable, schema: Columns) -> list[Question]:
    extra = [name for name in raw.columns if name not in schema]
    if not extra:
        return []
    listed = ", ".join(f"{name:.40}" for name in extra[:10]) + (", ..." if len(extra) > 10 else "")
    return [
        Question(
            f"the columns do not name {listed}, which {raw.name} has",
            "it is ignored" if len(extra) == 1 else "they are ignored",
        )
    ]


def _group(raw: RawTable, of_role: Mapping[str, str], new_data: bool) -> np.ndarray | None:
    name = next((name for name, role in of_role.items() if role == "group"), None)
    if name is None or name not in raw.columns or new_data:  # new rows are not split
        return None
    codes: dict[str, int] = {}
    for row, text in enumerate(raw.columns[name]):
        if text is None:
            raise ValueError(
                f"{raw.place(name, row)} is missing, but every row needs a group; name it, or remove the row"
            )
        codes.setdefault(text, len(codes))
    return np.array([codes[text or ""] for text in raw.columns[name]], dtype=np.int64)


def _splits(
    raw: RawTable, of_role: Mapping[str, str], group: np.ndarray | None, seed: int, fold: Fold | None, new_data: bool
) -> np.ndarray:
    if new_data:
        return np.full(raw.num_rows, 2, dtype=np.int64)
    name = next((name for name, role in of_role.items() if role == "split"), None)
    if name is not None and fold is not None:
        raise ValueError(f"{raw.place(name)} has the splits, but --folds draws them; omit the folds, or the column")
    if fold is not None:
        return fold_splits(raw.num_rows, group, seed, fold)
    if name is None:
        return draw_split(raw.num_rows, group, seed)
    splits = read_split(raw, name)
    if group is not None:
        check_groups(raw, next(name for name, role in of_role.items() if role == "group"), group, splits)
    return splits


def _read(raw: RawTable, name: str, role: str, given: Column | None, built: Built, unseen: str) -> Column:
    """Read one column: guess or check it, convert its cells, and fill in its numbers."""
    train = built.splits == 0
    cells = parse(raw, name)
    if given is None:
        column, questions = _guess(raw, role, cells, train)
        if questions:
            built.notes[name] = questions
    else:
        column = _prepared(raw, given, cells)
    if column.kind == "drop":
        return dataclasses.replace(column, missing=_missing(raw, name, train)) if train.any() else column
    counted: dict[str, int] = {}
    values = convert(raw, cells, column, unseen=unseen, counted=counted)
    if counted and role == "covariate":
        level = next(iter(counted))
        raise ValueError(
            f"{raw.place(name, cells.first(level))}: the level {level!r:.40} is unknown to the columns, and a "
            "covariate cannot be treated as missing; correct it, or remove the row"
        )
    if counted:
        built.unseen[name] = counted
    if column.missing is None and train.any():
        column = dataclasses.replace(column, missing=_missing(raw, name, train))
    if role != "weight" and not column.is_complete:
        try:
            column = complete(column, values, train)
        except ValueError as error:
            raise ValueError(f"{raw.name}, {error}") from error
    _check_role(raw, column, values, train)
    built.values[name] = values
    if train.any() and role == "data":
        built.notes.setdefault(name, []).extend(_doubts(column, values, train))
    return column


def _doubts(column: Column, values: np.ndarray, train: np.ndarray) -> list[Question]:
    """Ask about levels without a training row, and about digits that float32 does not hold."""
    if column.levels:
        seen = set(values[train & ~np.isnan(values)])
        absent = [level for code, level in enumerate(column.levels) if code not in seen]
        if absent:
            many = f"{len(absent):,} of {len(column.levels):,} levels"
            fact = f"{many} stand in no training row, such as {shown(absent[0])!r}"
            return [Question(fact, "join rare levels, or choose another split_seed, since nothing is learned of them")]
        return []
    distinct = np.unique(values[~np.isnan(values)])
    lost = len(distinct) - len(np.unique((distinct - column.origin).astype(np.float32)))
    if lost <= 0.01 * len(distinct):
        return []
    fact = f"{lost:,} of {len(distinct):,} values are not told apart in float32"
    return [Question(fact, "round them, or split them into two columns, if their last digits matter")]


def _missing(raw: RawTable, name: str, train: np.ndarray) -> float:
    return float(np.mean([text is None for text, used in zip(raw.columns[name], train, strict=True) if used]))


def _guess(raw: RawTable, role: str, cells: Cells, train: np.ndarray) -> tuple[Column, list[Question]]:
    name = cells.name
    if role == "weight":
        return Column(name, "real", role=role), []
    column, questions = guess(raw, cells, train)
    if role == "label" and column.kind not in LEVELLED:
        if column.kind == "drop" or len(cells.counts) > _FEW_LABELS:
            raise ValueError(
                f"{raw.place(name)}: a label needs classes, but it has {len(cells.counts):,} values in "
                f"{cells.num_observed:,} rows; name another column"
            )
        column = Column(name, "category", levels=levels_of(raw, cells))
    if role == "label":
        kind = "binary" if len(column.levels) == 2 else "category"
        return dataclasses.replace(column, role=role, kind=kind), []
    if role == "covariate" and column.kind == "drop":
        raise ValueError(
            f"{raw.place(name)} is no covariate: {column.reason}; leave it out, or give its kind by columns="
        )
    if role == "covariate":
        kind = "real" if column.likelihood else column.kind  # a covariate needs no density
        column = dataclasses.replace(column, kind=kind, likelihood=None)
    return dataclasses.replace(column, role=role if column.kind != "drop" else "drop"), questions


def _prepared(raw: RawTable, given: Column, cells: Cells) -> Column:
    """Fill in the levels or the format of dates that a column of the schema does not name."""
    if given.kind in LEVELLED and not given.levels:
        if given.kind == "ordered" and cells.numbers is None and cells.name not in raw.levels:
            raise ValueError(
                f"{raw.place(given.name)}: kind ordered needs its levels in increasing order; write levels: [...]"
            )
        if len(cells.counts) == cells.num_observed > 2:
            raise ValueError(
                f"{raw.place(given.name)}: kind {given.kind} has as many levels as rows, {len(cells.counts):,}; write "
                "kind: drop, or name the levels"
            )
        return dataclasses.replace(given, levels=levels_of(raw, cells))
    if given.kind == "real" and not given.is_complete and not given.format and cells.format:
        return dataclasses.replace(given, format=cells.format)
    return given


def _check_role(raw: RawTable, column: Column, values: np.ndarray, train: np.ndarray) -> None:
    """Check that covariates and weights are observed, and that labels are classes."""
    absent = np.flatnonzero(np.isnan(values))
    if column.role in ("covariate", "weight") and len(absent):
        others = f", as {len(absent) - 1:,} further cell{'s' * (len(absent) > 2)}" if len(absent) > 1 else ""
        raise ValueError(
            f"{raw.place(column.name, int(absent[0]))} is missing{others}; a {column.role} needs every cell: "
            f"remove {'this row' if len(absent) == 1 else 'these rows'}, or read the column as data"
        )
    if column.role == "label" and column.kind not in LEVELLED:
        raise ValueError(f"{raw.place(column.name)}: a label needs kind binary, category or ordered, got {column.kind}")
    if column.role == "weight":
        negative = np.flatnonzero(values < 0)
        if len(negative):
            raise ValueError(f"{raw.place(column.name, int(negative[0]))} is negative; a weight is at least 0")
        if train.any() and not values[train].sum() > 0:
            raise ValueError(f"{raw.place(column.name)}: the weights of the training rows sum to 0; give positive ones")
