"""What wvmonitor does on a real pretrained instruct model: fetched here, and never vendored."""
