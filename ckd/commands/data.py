"""Commands that make domains and their item features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ckd.commands.options import WORK, Config, DomainName, Json, Override, Seed, Work, refuse, settings_of

Replace = Annotated[bool, typer.Option("--replace", help="Take the place of another domain of that name.")]


def prepare(
    source: Annotated[Path, typer.Argument(help="File or folder of interactions and items.")],
    name: Annotated[str | None, typer.Option(help="The domain's name; without, the source's.")] = None,
    format: Annotated[str | None, typer.Option(help="Ingest format; without, ckd looks.")] = None,
    replace: Replace = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Read interactions and items, filter and split them, and save them as a domain."""
    from ckd import console, views
    from ckd.pipelines.prepare import prepare as run

    settings = settings_of(config, override, reads=("prepare",))
    with console.bars() as bars:
        prepared = run(
            work,
            source,
            name=name or source.name.split(".")[0].lower(),
            format=format,
            config=settings.prepare,
            progress=bars,
            replace=replace,
        )
    views.prepared(prepared, json)


def example(replace: Replace = False, work: Work = WORK, seed: Seed = None, json: Json = False) -> None:
    """Generate the built-in example: two source domains and a target, their pictures encoded."""
    from ckd import views
    from ckd.pipelines.example import prepare_example

    views.domains(prepare_example(work, settings_of(None, None, seed, reads=("seed",)).seed, replace=replace), json)


def encode_items(
    domain: DomainName,
    modality: Annotated[str | None, typer.Option(help="text, the default, or image.")] = None,
    feature: Annotated[str | None, typer.Option(help="Name of the feature; without, the modality's.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the encoder; for images an open_clip name, or pixels.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures named by raw item id.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Import ready-made vectors from this file instead.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Raw item ids of the rows of --vectors.")] = None,
    dim: Annotated[int | None, typer.Option(help="Length of a vector in a raw float32 file.")] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Parquet column or safetensors name of the vectors.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Parquet column of the ids.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Encode item texts or pictures into features, or import ready-made ones."""
    from ckd import console, views
    from ckd.config import parse
    from ckd.pipelines.encode_items import EncodeConfig, import_features
    from ckd.pipelines.encode_items import encode_items as run

    if vectors is None:
        importing = {"--ids": ids, "--dim": dim, "--vector-column": vector_column, "--id-column": id_column}
        refuse(importing, "is for importing vectors, with --vectors")
    else:
        refuse({"--model": model, "--images": images}, "nothing is encoded where --vectors are ready-made")
    settings = settings_of(config, override, reads=("features",))
    modality = modality or settings.features.get("modality", "text")
    parse(EncodeConfig, {"modality": modality}, "features")
    with console.bars() as bars:
        if vectors is not None:
            imported = import_features(
                work,
                domain,
                feature or modality,
                vectors,
                ids,
                dim=dim,
                vector_column=vector_column,
                id_column=id_column,
            )
            views.record(f"Feature {imported.feature} of {domain}", imported, json)
            return
        keys: dict[str, Any] = {**settings.features, "modality": modality}
        if feature is not None:
            keys["feature"] = feature
        if images is not None:
            keys["images"] = str(images)
        if model is not None:
            keys[modality] = {**keys.get(modality, {}), "model": model}
        encoded = run(work, domain, parse(EncodeConfig, keys, "features"), bars)
    views.record(f"Feature {encoded.feature} of {domain}", encoded, json)
