#![cfg_attr(fuzzing, no_main)]

apexmcp_fuzz::engine!(credential);
