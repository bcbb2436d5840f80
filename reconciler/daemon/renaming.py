"""``renamed_from``: a pipeline goes on where its old name stood."""

from __future__ import annotations

from catalog.errors import Leased, NotFound, Stale
from catalog.port import Catalog, new_operation_id
from catalog.records import Rename
from reconciler.config.desired import Pipeline


async def take_over(catalog: Catalog, pipeline: Pipeline) -> bool:
    """Let a pipeline have what the catalog knows by its old name. False: not yet, since a run by
    that name is under way. Nothing to take over, or no way any more, is True.

    Raises ``CatalogError`` when the catalog cannot be asked.
    """
    was = pipeline.renamed_from
    if not was or not (await catalog.pipeline(was)).epoch:
        return True
    why = f"{was} is {pipeline.name} in the config"
    try:
        await catalog.edit(new_operation_id(), "the config", why, Rename(pipeline.name, was))
    except Leased:
        return False
    except (NotFound, Stale):
        return True
    return True
