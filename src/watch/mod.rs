//! The watch core.
