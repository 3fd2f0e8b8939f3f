#![cfg_attr(fuzzing, no_main)]
#![allow(missing_docs)]

apexmcp_fuzz::engine!(config);
