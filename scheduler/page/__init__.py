"""The pages through which agent and engine tell each other things: small files that their writers map.

A page is a fixed, versioned, little-endian layout. It begins with a header (`files`) and holds records,
each under a sequence lock of its own (`seqlock`) and of one process (`identity`). The engine page (`engine`)
has one record and is written by the engine; the feedback page (`feedback`) has one for each process of a
target and is written by the agent. The reader of a page takes nothing in it on trust.
"""

from quietcore.scheduler.page.engine import (
    Account,
    Decisions,
    EnginePageWriter,
    EngineStats,
    StepTimes,
    engine_page_name,
    read_engine_page,
    remove_abandoned_pages,
)
from quietcore.scheduler.page.feedback import (
    MAX_SLOTS,
    Feedback,
    FeedbackPageWriter,
    FeedbackReader,
    StolenShares,
    default_feedback_path,
)
from quietcore.scheduler.page.identity import ProcessIdentity

__all__ = [
    "MAX_SLOTS",
    "Account",
    "Decisions",
    "EnginePageWriter",
    "EngineStats",
    "Feedback",
    "FeedbackPageWriter",
    "FeedbackReader",
    "ProcessIdentity",
    "StepTimes",
    "StolenShares",
    "default_feedback_path",
    "engine_page_name",
    "read_engine_page",
    "remove_abandoned_pages",
]
