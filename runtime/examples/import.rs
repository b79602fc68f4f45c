//! `import SOCKET ARCHIVE...` brings image archives into the containerd of a socket.

use std::path::Path;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: import SOCKET ARCHIVE...")?;
    let client = runtime::Client::connect(Path::new(&socket));
    for archive in arguments {
        for name in runtime::import::import_tar(&client, Path::new(&archive)).await? {
            println!("{name}");
        }
    }
    Ok(())
}
