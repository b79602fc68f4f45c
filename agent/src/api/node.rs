//! Slim Node, CSINode and Lease types.
