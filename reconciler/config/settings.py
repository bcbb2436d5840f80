"""The whole file as one settings model: the environment first, then the files, then defaults."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import Field, SkipValidation
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from reconciler.config.models import (
    ConnectionTable,
    DaemonTable,
    DefaultsTable,
    PipelineTable,
    RetentionTable,
)
from reconciler.config.values import Filled, Name, Size, Strings


class Given(PydanticBaseSettingsSource):
    """Values that were read and nested already."""

    def __init__(self, settings: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Asked for by no one, since ``__call__`` answers for all fields at once."""
        return self._values.get(field_name), field.alias or field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


class Settings(BaseSettings):
    """All of the config. Connections and pipelines are checked one by one, in ``tables``."""

    model_config = SettingsConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False
    )

    project: Name = Field(description="Name of what one catalog holds and one daemon serves.")
    state_dir: Filled = Field(
        default="state", description="Directory of the catalog and of the daemon's other state."
    )
    catalog: Filled | None = Field(
        default=None, description="Where the catalog is; catalog.db in state_dir without it."
    )
    catalog_limit: Size = Field(
        default=10 * 2**30,
        description="The catalog never grows beyond this.",
        json_schema_extra={"default": "10GiB"},
    )
    include: Strings = Field(
        default=(), description="Globs of files with more connections, pipelines."
    )
    daemon: DaemonTable = Field(
        default_factory=DaemonTable, description="The daemon: address, limits, lease."
    )
    defaults: DefaultsTable = Field(
        default_factory=DefaultsTable,
        description="Keys of pipelines and streams that hold where none is given.",
    )
    retention: RetentionTable = Field(
        default_factory=RetentionTable, description="How long the catalog keeps what."
    )
    connections: dict[Name, SkipValidation[ConnectionTable]] = Field(
        default_factory=dict, description="Named places that data comes from or goes to."
    )
    pipelines: dict[Name, SkipValidation[PipelineTable]] = Field(
        default_factory=dict, description="Each moves data from one connection to another."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *args: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's own sources, which
        **kwargs: PydanticBaseSettingsSource,  # noqa: ARG003 - know neither streams nor lines
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """``environment`` wins over ``files``: the two keywords that the model is made with."""
        assert isinstance(init_settings, InitSettingsSource)
        given = init_settings.init_kwargs
        return (Given(settings_cls, given["environment"]), Given(settings_cls, given["files"]))


def read_settings(environment: dict[str, Any], files: dict[str, Any]) -> Settings:
    """The root model. Raises pydantic's ``ValidationError`` with all that is wrong."""
    given: dict[str, Any] = {"environment": environment, "files": files}
    return Settings(**given)


@cache
def json_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors and for the environment's variables."""
    schema: dict[str, Any] = _without_null(Settings.model_json_schema(by_alias=True))
    schema["title"] = "reconciler config"
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _without_null(schema: Any) -> Any:
    """TOML has no null: a key that may be absent is simply not required."""
    if isinstance(schema, list):
        return [_without_null(s) for s in schema if s != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    kept = {k: _without_null(v) for k, v in schema.items() if not (k == "default" and v is None)}
    if len(kept.get("anyOf", ())) == 1:
        kept |= kept.pop("anyOf")[0]
    return kept
