"""The data: tasks by name, on-device batches, and the shifts and the augmentation they are made with."""

from ellarepro.data.augment import flip_and_crop as flip_and_crop
from ellarepro.data.batches import ordered_batches as ordered_batches
from ellarepro.data.dataset import Samples as Samples
from ellarepro.data.dataset import Task as Task
from ellarepro.data.dataset import fingerprint as fingerprint
from ellarepro.data.tasks import OWN as OWN
from ellarepro.data.tasks import RECIPES as RECIPES
from ellarepro.data.tasks import load_task as load_task
from ellarepro.data.tasks import with_held_out as with_held_out
from ellarepro.data.transforms import QUADRANTS as QUADRANTS
from ellarepro.data.transforms import place_in_quadrant as place_in_quadrant
from ellarepro.data.transforms import resize as resize
from ellarepro.data.transforms import rotate as rotate
from ellarepro.data.transforms import rotate_by as rotate_by
from ellarepro.data.transforms import translate as translate
from ellarepro.data.transforms import translate_by as translate_by
