"""Studies: several roads to one model, walked on the user's data and judged against the specialists.

A study is a run folder (`run_folder`, `journal`) × an arena (`arena`; `table_study`, `checkpoint_study`) × a crew (`crews`).
"""

from pluribus.study.run_folder import StudyResult, open_run
from pluribus.study.study import Study

__all__ = ["Study", "StudyResult", "open_run"]
