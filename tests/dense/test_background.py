"""The background of a RetinaNet is nothing that could be found, trained or exported."""

from __future__ import annotations

import torch

from dense.networks import CLASSES, detection_config, info_of, settled
from qsdformer.models.dense.detection import RetinaNetDetector
from qsdformer.runtimes.dense import ExportedDetector
from qsdformer.tasks.deployment import deployable, lowered


def test_no_box_is_of_the_background_however_likely_it_is() -> None:
    network = settled(detection_config())
    assert isinstance(network, RetinaNetDetector)
    with torch.no_grad():
        each = network.head.classification_head.predictor.bias.view(-1, len(CLASSES) + 1)
        each[:, 0] += 20
    graph = lowered(deployable(network, info_of(32)), info_of(32))
    images, sizes = [torch.rand(3, 32, 32)], [(32, 32)]
    with torch.no_grad():
        (found,) = network.detect(images, sizes)
    (exported,) = ExportedDetector(model=graph, post=graph.post).detect(images, sizes)
    for one in (found, exported):
        assert len(one["labels"]) > 0
        assert set(one["labels"].tolist()) <= {1, 2, 3}
