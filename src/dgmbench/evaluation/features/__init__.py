"""Feature nets: what samples and data are compared by. One file a net, one ``configs/features/NAME.yaml`` each."""
