"""General federated methods that stand beside the papers of this library, on the encoders and heads of `fedavg`.

Each is a module that is read beside its paper, and is FedAvg's method with some functions replaced: its server's
(FedNova), its clients' (Ditto, FedRep, pFedMe), or both (SCAFFOLD, FedDyn, IFCA, FeSEM). About modalities are CAR-MFL,
which borrows those that a client lacks, MFedMC, which chooses those that are sent, FedProto, which sends prototypes of
each, and FedCLIP, which is FedAvg on frozen features; FedMSplit, which mixes a model for each client, FlexMod, which
trains some encoders more, and HA-Fedformer, which trains modalities apart and predicts with all. Clients of Split-Mix
send several narrow networks, those of FedDM synthetic examples, and those of PromptFL the context of a prompt. What
clients' models say teaches the server's in FedFTG, through examples that it makes, and in FedET, through public ones.
"""
