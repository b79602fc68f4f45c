//! network_sync
