"""Detection: torchvision's detectors on any feature pyramid of timm's, trained by the loop that all tasks share."""
