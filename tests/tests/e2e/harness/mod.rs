//! The tests' own tools, and the documents.

mod clusters; // the tools see what they are to see and leave nothing behind
mod documents; // commands, settings, functions and links of the documents
