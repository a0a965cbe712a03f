"""Watch lightly's DINO with its default 65,536 prototypes and 2 + 6 crops: student's head against teacher's.

The heads give logits. `then` turns them into the distributions that the loss compares, so that the doctor sees
when all images are assigned to one prototype, or evenly to all.

python -m examples.lightly_dino
"""

from __future__ import annotations

import copy

import torch
import torchvision
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

import rankgap as rg
from examples.digits import Digits


class DINO(nn.Module):
    """A student and a teacher that follows it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(512, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(512)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x: Tensor) -> Tensor:
        """The student's logits for a view."""
        out: Tensor = self.student_head(self.student_backbone(x).flatten(start_dim=1))
        return out

    def forward_teacher(self, x: Tensor) -> Tensor:
        """The teacher's logits for a view."""
        out: Tensor = self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))
        return out


def main(steps: int = 100) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    model = DINO(nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]))
    loader = Digits(DINOTransform(global_crop_size=32, local_crop_size=16)).batches(32)
    criterion = DINOLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    epoch = 0

    def student_distribution(logits: Tensor) -> Tensor:
        return torch.softmax(logits / criterion.student_temp, -1)

    def teacher_distribution(logits: Tensor) -> Tensor:
        return torch.softmax((logits - criterion.center[0]) / criterion.teacher_temp, -1)

    with rg.RankMonitor(
        model,
        online="student_head",
        target="teacher_head",
        then=(student_distribution, teacher_distribution),
        steps=steps,
    ) as monitor:
        while monitor.step < steps:
            momentum = cosine_schedule(epoch, 10, 0.996, 1)
            for views in loader:
                update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
                update_momentum(model.student_head, model.teacher_head, m=momentum)
                with torch.no_grad():
                    teacher = [model.forward_teacher(view) for view in views[:2]]
                student = [model(view) for view in views]
                loss = criterion(teacher, student)
                loss.backward()
                model.student_head.cancel_last_layer_gradients(current_epoch=epoch)
                optimizer.step()
                optimizer.zero_grad()
                if monitor.step >= steps:
                    break
            epoch += 1
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
