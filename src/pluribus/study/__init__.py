"""Studies: several roads to one model, walked on the user's data and judged against the specialists."""

from pluribus.study.study import Study, StudyResult, open_run

__all__ = ["Study", "StudyResult", "open_run"]
