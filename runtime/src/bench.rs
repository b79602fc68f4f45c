//! The yardstick: the CRI calls of one pod start, made raw.
