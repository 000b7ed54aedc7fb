from ..integrations.conftest import one_thread as one_thread
from ..integrations.conftest import rng as rng
