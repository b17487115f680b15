"""What only people know of a model and its data: for the model card (:mod:`whence.report.card`)."""

from __future__ import annotations

from pydantic import Field

from whence.config.base import Section


class CardData(Section):
    owner: str | None = Field(None, description="Who owns the data, or made it available.")
    license: str | None = Field(None, description="Licence of the data, or by which contract it is used.")
    acquired: str | None = Field(None, description="How it was got: public, bought, licensed, from users, crawled.")
    period: str | None = Field(None, description="When it was collected, e.g. 2007 to 2018, and whether that goes on.")
    languages: list[str] = Field(default_factory=list, description="Languages of its text, as ISO codes: [en, de].")
    copyright: str | None = Field(None, description="Whether it holds what copyright, trade marks or patents protect.")
    reserved_rights: str | None = Field(None, description="How reservations against text and data mining were kept.")
    personal: str | None = Field(None, description="Whether it holds personal information, and what was done about it.")
    consumers: str | None = Field(None, description="Whether it holds aggregate consumer information.")
    synthetic: str | None = Field(None, description="Whether it was generated, and by what.")
    illegal: str | None = Field(None, description="What was done to keep illegal content out.")


class Card(Section):
    provider: str | None = Field(None, description="Who answers for the model.")
    license: str | None = Field(None, description="Licence of the model, as the hub names it, e.g. apache-2.0.")
    purpose: str | None = Field(None, description="What the model is for, and how the data serves that.")
    data: CardData = Field(default_factory=lambda: CardData())
