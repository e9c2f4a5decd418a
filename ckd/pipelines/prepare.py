"""`ckd prepare`: a source of interactions and items becomes a domain (paper 4.1.1, Table 2)."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.config import PrepareConfig
from ckd.data.coding import Coded, compact, encode
from ckd.data.domain import Domain, columns, leave_one_out
from ckd.data.filters import Removed, drop_duplicates, k_core, keep_items, min_length, removed
from ckd.data.ingest import find_format
from ckd.data.ingest.problems import Malformed, Problems
from ckd.data.ingest.raw import IngestFormat, RawDomain, ReadOptions
from ckd.data.ingest.spool import IMAGE, ITEM, LINE, RAW, SPLIT, TEXT, USER
from ckd.errors import ConfigError, DataError, did_you_mean, file_name
from ckd.pipelines.prepared_from import inputs_of, require_same_domain
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import domain_folder

WITHOUT_METADATA = "items without metadata"


@dataclass(frozen=True)
class Prepared:
    """A domain and how it came about.

    Attributes:
        domain: as saved.
        format: name of the ingest format.
        read: interactions read, malformed rows not counted.
        removed: what each filter took, in the order of application.
        malformed: rows left out because they could not be read.
    """

    domain: Domain
    format: str
    read: int
    removed: tuple[Removed, ...]
    malformed: tuple[Malformed, ...]

    @property
    def statistics(self) -> dict[str, float]:
        """The columns of the paper's Table 2."""
        return self.domain.statistics()


def prepare(
    work: Path,
    source: Path,
    *,
    name: str,
    format: str | None = None,
    config: PrepareConfig | None = None,
    progress: Progress = silent,
    replace: bool = False,
) -> Prepared:
    """Read `source`, filter it, split it leave-one-out unless it has a split, and save it as the domain `name`.

    The same domain may be prepared again at any time; its features and pictures stay.

    Args:
        work: the work folder; the domain is saved in `domains/<name>` below it.
        source: a file or folder.
        name: the domain's name.
        format: name of an ingest format, None to look at the source.
        config: filters and split.
        progress: receives the bytes or rows read of each file.
        replace: put it in the place of another domain of that name, to which plans, scores and runs may belong.

    Raises:
        DataError: the source is missing, malformed, of no or several formats, nothing is left of it, or another domain
            has the name.
        ConfigError: a name that is no file name, an unknown format, or a filter that would break a given split.
    """
    config = config or PrepareConfig()
    format, reader = find_format(source, format)
    file_name("domain", name, "Give another --name.")
    folder = domain_folder(work, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    problems = Problems(config.on_error)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=folder.parent) as scratch:
        raw = reader.read(source, ReadOptions(Path(scratch), problems, config.items, progress))
        if raw.has_split:
            _refuse_filters(format, config)
        coded = encode(raw)
        read = coded.table.height
        coded, taken = _filter(coded, raw, reader, config, problems)
        if not coded.table.height:
            raise DataError(_nothing_left(raw, read, taken, problems.malformed))
        coded = compact(coded, keep_all_items=raw.has_split)
        item_table = _item_table(raw, coded.items, config)
        inputs = inputs_of(raw, source)
    notes = {
        "source": str(source.absolute()),
        "inputs": inputs,
        "format": format,
        "config": config.model_dump(mode="json"),
        "interactions_read": read,
        "removed": [asdict(each) for each in taken],
        "malformed": [{**asdict(each), "file": str(each.file)} for each in problems.malformed],
    }
    domain = _domain(name, coded, item_table, config.history_cap, notes)
    if not replace:
        require_same_domain(folder, domain)
    return Prepared(domain.save(folder), format, read, tuple(taken), problems.malformed)


def _refuse_filters(format: str, config: PrepareConfig) -> None:
    """A split that is kept as given allows no filter that might break it."""
    wanted = {
        "k_core_user": (config.k_core_user or 1) > 1,
        "k_core_item": (config.k_core_item or 1) > 1,
        "min_length": config.min_length > 1,
        "drop_duplicates": config.drop_duplicates == "pair",
        "require_text": config.require_text is True,
    }
    for key, breaks in wanted.items():
        if breaks:
            value = getattr(config, key)
            raise ConfigError(
                f"prepare.{key}={value}: format {format} gives a split, which is kept as given; leave this key out."
            )


def _filter(
    coded: Coded, raw: RawDomain, reader: IngestFormat, config: PrepareConfig, problems: Problems
) -> tuple[Coded, list[Removed]]:
    """Apply every filter, in the order in which they are reported."""
    taken: list[Removed] = []

    def note(name: str, after: Coded) -> Coded:
        taken.append(removed(name, coded, after))
        return after

    coded = note("duplicates", drop_duplicates(coded, config.drop_duplicates))
    if raw.has_split:
        return coded, taken
    if raw.items is None:
        if config.require_text:
            raise DataError(f"{raw.file}: prepare.require_text needs an item file; name one with prepare.items=PATH.")
    else:
        described, has_text = _described(raw.items, coded.items, config)
        if config.require_text is not False:
            _report_missing(coded, described, raw, problems)
            coded = note(WITHOUT_METADATA, keep_items(coded, described))
            coded = note("items without text", keep_items(coded, has_text))
    user = config.k_core_user or reader.k_core
    item = config.k_core_item or reader.k_core
    coded = note(f"{user}-core users, {item}-core items", k_core(coded, user, item))
    return note(f"users shorter than {config.min_length}", min_length(coded, config.min_length)), taken


def _described(
    items: pl.LazyFrame, ids: pl.Series, config: PrepareConfig
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Per id: whether an item row has it, and whether that row gives it a text."""
    has_text = (_text(items.collect_schema().names(), config).str.len_bytes() > 0).alias(TEXT)
    wanted = pl.LazyFrame({RAW: ids, "at": pl.int_range(len(ids), dtype=pl.UInt32, eager=True)})
    rows = items.select(RAW, LINE, has_text).join(wanted, on=RAW).select("at", LINE, TEXT).collect(engine="streaming")
    rows = rows.sort("at", LINE).unique("at", keep="first", maintain_order=True)
    described, text = np.zeros(len(ids), dtype=np.bool_), np.zeros(len(ids), dtype=np.bool_)
    described[rows["at"].to_numpy()] = True
    text[rows["at"].to_numpy()] = rows[TEXT].fill_null(False).to_numpy()
    return described, text


def _report_missing(coded: Coded, described: npt.NDArray[np.bool_], raw: RawDomain, problems: Problems) -> None:
    """Interactions with items that the item file lacks are malformed rows."""
    missing = coded.table.filter(pl.Series(~described[coded.table[ITEM].to_numpy()]))
    if not missing.height:
        return
    first = missing.row(int(missing[LINE].arg_min() or 0), named=True)
    assert raw.items_file is not None
    problems.row(
        raw.file,
        first[LINE],
        f"an item without metadata in {raw.items_file.name}",
        repr(coded.items[first[ITEM]]),
        remedy="Add it, or leave such items out with prepare.on_error=skip.",
        rows=missing.height,
    )


def _text(names: list[str], config: PrepareConfig) -> pl.Expr:
    """An item's text: its own, else its title, category and brand, each ended with a full stop, as UniSRec has it."""
    own = pl.col(TEXT).fill_null("") if TEXT in names else pl.lit("")
    attributes = [name for name in names if name not in (RAW, LINE, TEXT, IMAGE)]
    if "text_fields" in config.model_fields_set:
        for name in config.text_fields:
            if name not in attributes:
                raise ConfigError(
                    f"prepare.text_fields={list(config.text_fields)}: items have no attribute {name!r}."
                    f"{did_you_mean(name, attributes)}"
                )
    chosen = [name for name in config.text_fields if name in attributes] or attributes
    if not chosen:
        return own
    plain = [pl.col(name).str.replace_all('"', "", literal=True).str.strip_chars() for name in chosen]
    ended = [pl.when(value.str.len_bytes() > 0).then(value + ".") for value in plain]
    return pl.when(own.str.len_bytes() > 0).then(own).otherwise(pl.concat_str(ended, separator=" ", ignore_nulls=True))


def _item_table(raw: RawDomain, ids: pl.Series, config: PrepareConfig) -> pl.DataFrame:
    """The domain's item table: item, raw id, text, image where there is one, and the attributes that any item has."""
    table = pl.DataFrame({columns.ITEM: pl.int_range(1, len(ids) + 1, dtype=pl.Int32, eager=True), columns.RAW: ids})
    if raw.items is None:
        return table.with_columns(pl.lit("").alias(columns.TEXT))
    wanted = raw.items.join(table.lazy().select(columns.RAW), on=RAW, how="semi").collect(engine="streaming")
    wanted = wanted.sort(LINE).unique(RAW, keep="first", maintain_order=True)
    wanted = wanted.with_columns(_text(wanted.columns, config).alias(TEXT)).drop(LINE)
    table = table.join(wanted, left_on=columns.RAW, right_on=RAW, how="left", maintain_order="left")
    attributes = [name for name in table.columns if name not in (columns.ITEM, columns.RAW, TEXT, IMAGE)]
    attributes = [name for name in attributes if (table[name].fill_null("") != "").any()]
    if not attributes:
        # A text without structure: what a teacher that wants attributes reads as the title.
        table = table.with_columns(pl.col(TEXT).str.strip_chars_end(" .").alias("title"))
        attributes = ["title"]
    image = [IMAGE] if IMAGE in table.columns and table[IMAGE].is_not_null().any() else []
    strings = [pl.col(name).fill_null("") for name in (TEXT, *attributes)]
    return table.select(columns.ITEM, columns.RAW, strings[0], *image, *strings[1:])


def _domain(name: str, coded: Coded, item_table: pl.DataFrame, history_cap: int, notes: dict[str, object]) -> Domain:
    table = coded.table
    counts = np.bincount(table[USER].to_numpy(), minlength=len(coded.users))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Domain(
        name=name,
        indptr=indptr,
        items=(table[ITEM].to_numpy() + 1).astype(np.int32),
        split=table[SPLIT].to_numpy().astype(np.uint8) if SPLIT in table.columns else leave_one_out(indptr),
        item_table=item_table,
        user_ids=coded.users.alias(columns.RAW),
        history_cap=history_cap,
        notes=notes,
    )


def _nothing_left(raw: RawDomain, read: int, taken: list[Removed], malformed: tuple[Malformed, ...]) -> str:
    skipped = sum(each.rows for each in malformed)
    if not read:
        rest = f", {skipped} malformed rows were left out" if skipped else ""
        return f"{raw.file}: no interactions{rest}."
    shares = ", ".join(f"{each.filter}: {each.interactions}" for each in taken if each.interactions)
    return f"{raw.file}: no interaction is left of {read} after filtering ({shares}). Loosen the prepare section."
