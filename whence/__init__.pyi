from whence.config_file import load_config as load_config
from whence.influence.factors import fit_factors as fit_factors
from whence.influence.results import Scores as Scores
from whence.influence.scores import make_index as make_index
from whence.influence.scores import score as score
from whence.models.trained import TrainedModel as TrainedModel
from whence.models.trained import own_config as own_config
from whence.run_folder import load_run as load_run

__version__: str
__all__ = ["Scores", "TrainedModel", "fit_factors", "load_config", "load_run", "make_index", "own_config", "score"]
