"""Files that are no table, damaged, or do not fit the columns: one line with file, column and row, or a choice."""

import builtins
import gzip
import importlib
import io
import os
import pickle
import sys

import numpy as np
import pytest

from pyrovae.data import read_table, table_files

ROWS = [f"{20 + 7 * i % 31 + 0.5},{'FM'[i % 2]},{i % 3 * 2 + i % 5}" for i in range(30)]
TEXT = "\n".join(["age,sex,visits", *ROWS]) + "\n"


def write(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message, kind=ValueError, **options):
    with pytest.raises(kind, match=message) as caught:
        read_table(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def changed(row, text):
    """The table with another line in place of a row, counted from 1."""
    lines = TEXT.splitlines()
    lines[row] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ("age,sex,visits\n", "has no rows"),
        (changed(7, "1,F"), r"row 7 \(line 8\) has 2 cells, but the header has 3"),
        (changed(7, "1,F,3,4"), r"row 7 \(line 8\) has 4 cells"),
        (changed(7, ""), "line 8 is empty, and rows follow"),
        (changed(7, '1,"F,3'), "is no valid CSV"),
        (changed(7, '1,"F"x,3'), "line 8 is no valid CSV"),
        (changed(7, "1,\0,3"), "line 8 has a NUL byte"),
        (changed(7, "1,Ä,3").encode("latin-1"), r"line 8 is not encoded in UTF-8 after '1,' \(byte 0xc4\)"),
        (TEXT.encode("utf-16"), "is encoded in UTF-16"),
        (TEXT.replace("sex", "age"), "columns 1 and 2 have the same name 'age'"),
        (TEXT.replace("sex", " age "), "columns 1 and 2 have the same name 'age'"),
        (TEXT.replace("sex", ""), "column 2 has no name"),
        (TEXT.replace("sex", "\x1b[2J"), "must have 1 to 200 printable letters"),
        (changed(7, "inf,F,3"), "column 'age', row 7 is infinite"),
        (changed(7, "-Infinity,F,3"), "column 'age', row 7 is infinite"),
        (changed(7, "1e999,F,3"), "column 'age', row 7 is infinite"),
        (changed(7, "1e39,F,3"), "column 'age', row 7: '1e39' is too large for float32"),
        (pickle.dumps({"a": 1}), "is a pickle"),
        (gzip.compress(TEXT.encode()), "is compressed by gzip"),
        (b"PAR1" + b"x" * 50, "is a Parquet file"),
        (changed(7, "1," + "x" * 200_000 + ",3"), r"field larger than field limit|more than 131,072 letters"),
        (TEXT.replace("\n", "\r"), r"is no valid CSV \(it has a return without .* save it with usual ends of lines"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_place(tmp_path, content, message):
    refused(write(tmp_path, content), message)


def test_arrays_of_numpy_and_spreadsheets_are_refused(tmp_path):
    file = io.BytesIO()
    np.savez(file, x=np.array([{}], dtype=object))
    refused(write(tmp_path, file.getvalue()), "is a zip file, such as .npz")
    for suffix in (".pkl", ".npz", ".npy", ".joblib", ".xlsx", ".rds", ".gz", ""):
        refused(write(tmp_path, file.getvalue(), f"t{suffix}"), "is no table of a known format")


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    refused(tmp_path / "none.csv", "no such file", FileNotFoundError)
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", "is a folder")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "is a named pipe")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.csv"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    refused(path, "has 1,099,511,627,776 bytes, but such a file has at most")
    monkeypatch.setattr(table_files, "_LONGEST_LINE", 1000)
    refused(write(tmp_path, b"a" * 2000), "has a line of more than 1,000 bytes")
    monkeypatch.setattr(table_files, "_MOST_CELLS", 80)
    refused(write(tmp_path, TEXT), "has 30 x 3 cells, but at most 80 are read")


def test_the_limit_of_a_cell_is_not_the_global_limit_of_csv(tmp_path):
    import csv

    before = csv.field_size_limit(10**9)
    try:
        refused(write(tmp_path, changed(7, "1," + "x" * 200_000 + ",3")), "line 8 has a cell of more than 131,072")
        assert csv.field_size_limit() == 10**9
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT + "\n\n",
        TEXT.replace(",", " , "),
        TEXT.replace("age", '"age"').replace(",F,", ',"F",'),
    ],
)
def test_byte_order_mark_line_ends_spaces_and_quotes_change_nothing(tmp_path, content):
    table, plain = read_table(write(tmp_path, content)), read_table(write(tmp_path, TEXT, "u.csv"))
    assert table.columns == plain.columns
    assert table.x.equal(plain.x)
    assert len(table) == 30


def test_tabs_other_delimiters_and_names_in_place_of_a_header(tmp_path):
    plain = read_table(write(tmp_path, TEXT))
    for path, options in [
        (write(tmp_path, TEXT.replace(",", "\t"), "t.tsv"), {}),
        (write(tmp_path, TEXT.replace(",", "|"), "t.txt"), {"delimiter": "|"}),
        (write(tmp_path, TEXT.split("\n", 1)[1], "u.csv"), {"names": ["age", "sex", "visits"]}),
    ]:
        assert read_table(path, **options).columns == plain.columns
    refused(write(tmp_path, TEXT), r"has 3 cells in its first row, but names= gives 2", names=["a", "b"])


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_of_a_header_without_a_comma_is_taken(tmp_path, delimiter):
    path, other = tmp_path / "t.csv", tmp_path / "other.csv"
    path.write_text(TEXT)
    other.write_text(TEXT.replace(",", delimiter))
    table, found = read_table(path), read_table(other)
    assert found.sha256 == table.sha256
    assert found.columns == table.columns
    assert any(f"cells are separated by {delimiter!r}" in question for question in found.questions)
    assert not any("separated" in question for question in table.questions)


def test_a_header_of_numbers_is_asked_about(tmp_path):
    table = read_table(write(tmp_path, "\n".join(["1.5,2.5", *[f"{i}.5,{i % 7}.25" for i in range(30)]])))
    assert any("the header holds numbers alone" in question for question in table.questions)


def test_row_names_of_r_are_dropped(tmp_path):
    lines = ['"",' + TEXT.splitlines()[0], *(f'"{i + 1}",{row}' for i, row in enumerate(ROWS))]
    table = read_table(write(tmp_path, "\n".join(lines)))
    assert table.columns["rownames"].reason == "30 whole numbers in as many rows: an identifier"


def test_formulas_in_text_are_texts(tmp_path):
    lines = ["a,b", *(f"{'=cmd()' if i % 2 else '@SUM(1)'},{i}.5" for i in range(20))]
    assert read_table(write(tmp_path, "\n".join(lines))).columns["a"].levels == ("=cmd()", "@SUM(1)")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("21.5,X,3", "column 'sex', row 7: the level 'X' is none of 'F', 'M'"),
        ("21.5,F,-1", "column 'visits', row 7: '-1' is no count"),
        ("21.5,F,2.5", "column 'visits', row 7: '2.5' is no count"),
        ("21.5,F,20000000", "column 'visits', row 7: '20000000' is a count beyond 16,777,216"),
        ("old,F,3", "column 'age', row 7: 'old' is no number"),
        ("0x1F,F,3", "column 'age', row 7: '0x1F' is no number"),
        ("1_000,F,3", "column 'age', row 7: '1_000' is no number"),
        ("١٢,F,3", "column 'age', row 7: '١٢' is no number"),
        ("inf,F,3", "column 'age', row 7"),
    ],
)
def test_a_cell_that_does_not_fit_the_columns_is_refused(tmp_path, row, message):
    columns = read_table(write(tmp_path, TEXT)).columns.replace("visits", kind="count", levels=())
    columns = read_table(write(tmp_path, TEXT), columns=columns).columns
    refused(write(tmp_path, changed(7, row), "new.csv"), message, columns=columns)


def test_columns_are_found_by_name(tmp_path):
    table = read_table(write(tmp_path, TEXT))
    turned = "\n".join(",".join([*reversed(line.split(",")), "1"]) for line in TEXT.splitlines())
    turned = turned.replace("visits,sex,age,1", "visits,sex,age,more")
    again = read_table(write(tmp_path, turned, "turned.csv"), columns=table.columns)
    assert again.columns == table.columns
    assert again.x.equal(table.x)
    assert again.questions == [f"the columns do not name more, which {again.name} has -- it is ignored"]
    without = "\n".join(line.rsplit(",", 1)[0] for line in TEXT.splitlines())
    refused(
        write(tmp_path, without, "new.csv"), "has no column 'visits', which the columns name", columns=table.columns
    )


@pytest.mark.parametrize("level", ["X", "0", "False", "00"])
def test_unseen_levels_are_counted_as_missing_if_asked(tmp_path, level):
    """Also those that are false as values: 0 and False."""
    columns = read_table(write(tmp_path, TEXT)).columns
    path = write(tmp_path, changed(7, f"21.5,{level},3"), "new.csv")
    table = read_table(path, columns=columns, unseen="missing")
    assert table.unseen == {"sex": {level: 1}}
    assert table.mask[:, 1].logical_not().nonzero().flatten().tolist() == [6]
    refused(path, f"the level '{level}' is none of", columns=columns)


@pytest.mark.parametrize("index", ["age", ["age", "sex"]])
def test_a_named_index_of_pandas_is_read_as_columns(tmp_path, index):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.read_csv(io.StringIO(TEXT))
    frame.set_index(index).to_parquet(tmp_path / "t.parquet")
    table, plain = read_table(tmp_path / "t.parquet"), read_table(frame)
    assert {column.name: column for column in table.columns} == {column.name: column for column in plain.columns}


def test_parquet_without_its_libraries_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = write(tmp_path, b"PAR1", "t.parquet")
    refused(path, r"pip install 'pyrovae\[table\]'", ImportError)


def test_reading_a_csv_imports_no_data_frames(tmp_path, monkeypatch):
    path = write(tmp_path, TEXT)
    imported, load = [], builtins.__import__

    def noted(name, *args, **kwargs):
        imported.append(name.partition(".")[0])
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", noted)
    monkeypatch.setattr(importlib, "import_module", lambda name, package=None: noted(name))
    read_table(path)
    assert not {"pandas", "polars", "pyarrow"} & set(imported)
