//! Compiles the definitions of the control calls; needs `protoc`, which scripts/setup.sh installs.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().compile_protos(&["proto/control.proto"], &["proto"])?;
    Ok(())
}
