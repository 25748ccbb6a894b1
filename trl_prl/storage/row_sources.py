"""Rows wherever they are, files, folders or the Hub: one reader for every command and example."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, overload

from .missing import say_missing
from .row_files import READ_SUFFIXES, TEXT_SUFFIXES, Rows, file_rows


_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@overload
def open_rows(source: str | Path | None, name: str | None = None, split: str = "train") -> Rows: ...


@overload
def open_rows(source: str | Path | None, name: str | None, split: None) -> dict[str, Rows]: ...


def open_rows(
    source: str | Path | None, name: str | None = None, split: str | None = "train"
) -> Rows | dict[str, Rows]:
    """Open rows to read them one by one, each as it was written.

    Args:
        source (`str` or `Path`):
            A file of JSON lines, a `.json` array, CSV (whose values are texts, an empty one null) or Parquet, all but
            the last gzipped or not; a folder of such files or of `save_to_disk`; or a Hub id.
        name (`str`, *optional*):
            Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split, `None` for all; a file alone is `"train"`.

    Returns:
        [`Rows`], or a dictionary of them without a `split`: The rows.

    Raises:
        `ValueError`: If the name has another ending, or there is no such split.
        `OSError`: If there is no such file.
    """
    found = _own_splits(source, name)
    if found is not None:
        return found if split is None else _pick(found, split, source)
    loaded = _from_datasets(str(source), name, split)
    if split is None:
        return {key: _of_dataset(dataset, source) for key, dataset in loaded.items()}
    return _of_dataset(loaded, source)


def _of_dataset(dataset: Any, source: Any) -> Rows:
    return Rows(str(source), lambda: iter(dataset), len(dataset), dataset.features.arrow_schema)


def load_rows(
    source: str | Path | None, name: str | None = None, split: str | None = "train", streaming: bool = False
) -> Any:
    """Load rows as a data set, from a file, a folder or the Hub.

    Columns that some rows lack are null there, and types hold every row, not the first ones only: JSON and CSV are
    read row by row into memory, everything else as [`~datasets.load_dataset`] does.

    Args:
        source (`str` or `Path`):
            A `.jsonl`, `.json` (lines or an array), `.csv` or `.parquet` file, all but the last gzipped or not, a
            folder of such files or of [`~datasets.Dataset.save_to_disk`], or a Hub id.
        name (`str`, *optional*):
            Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split, `None` for all; a file alone is `"train"`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return iterable data sets.

    Returns:
        [`~datasets.Dataset`], or [`~datasets.DatasetDict`] without a `split`: The rows.

    Raises:
        `ValueError`: If a row cannot be read or fits no table, with file, row and column; or there is no such split.
        `OSError`: If there is no such file or data set.
    """
    from datasets import DatasetDict, IterableDatasetDict

    # Parquet is mapped into memory rather than read.
    found = None if str(source).endswith(".parquet") else _own_splits(source, name)
    if found is None:
        return _from_datasets(str(source), name, split, streaming=streaming)
    wanted = found if split is None else {split: _pick(found, split, source)}
    made = {key: rows_dataset(rows, rows.source) for key, rows in wanted.items()}
    if streaming:
        made = {key: dataset.to_iterable_dataset() for key, dataset in made.items()}
    return (IterableDatasetDict if streaming else DatasetDict)(made) if split is None else made[split]


def rows_dataset(rows: Iterable[Mapping[str, Any]], source: Any) -> Any:
    """Make a data set of rows, whose types hold every row.

    Args:
        rows (`Iterable[Mapping]`):
            Rows that can be read twice; what some lack is null there.
        source (`Any`):
            Where they are from, for messages.

    Returns:
        [`~datasets.Dataset`]: The data set.

    Raises:
        `ValueError`: If there is no row, or one fits no table, with its column.
    """
    import pyarrow as pa
    from datasets import Dataset

    from .row_tables import infer_schema, row_tables

    schema = infer_schema(rows, source)
    if not len(schema):
        raise ValueError(f"'{source}' has no rows, so there is nothing to load. Give a file with rows.")
    return Dataset(pa.concat_tables(row_tables(rows, schema, source)))


def _pick(splits: Mapping[str, Any], split: str, source: Any) -> Any:
    if split not in splits:
        raise ValueError(
            f"'{source}' has the splits {', '.join(splits)} and no {split!r}. A file alone is one split, "
            "'train'. Name one that there is."
        )
    return splits[split]


def _from_datasets(source: str, name: str | None, split: str | None, **kwargs: Any) -> Any:
    """What the library `datasets` reads right by itself: the Hub, its own folders, Parquet, addresses of files."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetBuildError
    from huggingface_hub.errors import HFValidationError

    if _is_saved(Path(source)):
        saved = load_from_disk(source)
        splits = saved if isinstance(saved, Mapping) else {"train": saved}
        return splits if split is None else _pick(splits, split, source)
    kind = None if Path(source).is_dir() else _BUILDERS.get(Path(source.removesuffix(".gz")).suffix)
    found = {"path": source, "name": name} if kind is None else {"path": kind, "data_files": source}
    try:
        return load_dataset(**found, split=split, cache_dir=_cache_of(Path(source)), **kwargs)
    except DatasetBuildError as error:
        raise ValueError(
            f"'{source}' could not be read as a data set ({error.__cause__ or error}). Its files are broken or differ "
            "in their columns. Correct them, or give one of them as a file."
        ) from error
    except (OSError, HFValidationError) as error:
        if "://" in source or Path(source).exists():
            raise
        raise FileNotFoundError(
            f"{say_missing('data set', source, error)} Give a file that exists ({', '.join(READ_SUFFIXES)}), a folder "
            "of such files, or the id of a data set on the hub."
        ) from error


def _cache_of(source: Path) -> str | None:
    """Folder in the cache of `datasets` for local files as they are now; `None`, its default, for all else.

    The library tells a file by its path and the time it was modified, which a copy may keep.
    """
    from datasets import config

    files = [source] if source.is_file() else sorted(source.rglob("*")) if source.is_dir() else []
    stats = [(str(file.absolute()), file.stat()) for file in files if file.name.endswith((*READ_SUFFIXES, ".md"))]
    if not stats:
        return None
    # The time of the last change of the inode is the system's own.
    state = repr([(name, stat.st_ino, stat.st_size, stat.st_ctime_ns) for name, stat in stats])
    return str(Path(config.HF_DATASETS_CACHE) / "trl_prl" / hashlib.sha256(state.encode()).hexdigest()[:16])


def _own_splits(source: str | Path | None, name: str | None) -> dict[str, Rows] | None:
    """What is read here: files, and the splits of local folders of JSON or CSV; `None` for everything else."""
    if not source:
        raise ValueError("No data set was given, so there are no rows. Give a file, a folder or a hub id.")
    source, path = str(source), Path(source)
    if path.is_file() or (source.endswith(READ_SUFFIXES) and not path.is_dir() and "://" not in source):
        return {"train": file_rows(path)}
    if not path.is_dir() or _is_saved(path):
        return None
    from datasets import load_dataset_builder

    splits = load_dataset_builder(source, name).config.data_files or {}
    if not all(str(file).endswith(TEXT_SUFFIXES) for files in splits.values() for file in files):
        return None
    return {str(key): Rows(source, partial(_rows_of_files, files)) for key, files in splits.items()}


def _rows_of_files(files: Iterable[str]) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(file_rows(Path(file)) for file in files)


def _is_saved(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
