"""How faces are kept for training eye points, and in which order networks and data sets count them."""

from __future__ import annotations

import numpy as np

FACE_PX, FACE_BOX_PX = 192, 96        # faces are kept at this size, edges repeated, the box's longer side in the middle
MIRRORED = np.array([9, 8, 7, 6, 11, 10, 3, 2, 1, 0, 5, 4])   # where each eye point goes when left becomes right
MIRRORED_FIVE = np.array([1, 0, 2, 4, 3])                     # the same of eyes, nose, mouth corners
WFLW_EYES = np.array([60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75])   # of 98 points, the twelve of 300-W
MESH_EYES = np.array([33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380])   # of MediaPipe's 468
