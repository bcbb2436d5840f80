"""``renamed_from``: a pipeline goes on where its old name stood."""

from __future__ import annotations

from catalog.errors import Leased, NotFound
from catalog.port import Catalog, new_operation_id
from catalog.records import Rename
from reconciler.config.desired import Pipeline


async def take_over(catalog: Catalog, pipeline: Pipeline) -> bool:
    """Let a pipeline have what the catalog knows by its old name. False: not yet, since a run by
    that name is under way. Nothing to take over is True.

    Raises ``Stale`` when both names have batches of their own, ``CatalogError`` when the catalog
    cannot be asked.
    """
    was = pipeline.renamed_from
    if not was:
        return True
    former = await catalog.pipeline(was)
    if not former.version or former.is_vacant:
        return True
    why = f"{was} is {pipeline.name} in the config"
    try:
        await catalog.edit(new_operation_id(), "the config", why, Rename(pipeline.name, was))
    except Leased:
        return False
    except NotFound:  # another daemon did it meanwhile
        pass
    return True
