"""Images with boxes and masks: COCO's and Pascal VOC's formats, and scenes that are made here."""
