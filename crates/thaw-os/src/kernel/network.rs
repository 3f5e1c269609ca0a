//! The loopback interface of a new network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::thread::ThreadNameSpaceType;

/// State of a listening socket in `/proc/net/tcp` (TCP_LISTEN, proc_net_tcp.txt).
const LISTENING: &str = "0A";

/// Brings up `lo` in the calling process's network namespace. A new `lo` is down and has no address.
///
/// # Errors
/// The calling process lacks CAP_NET_ADMIN over the namespace.
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: ifreq is plain data for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is what the pointer refers to.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Connects to `port` of the loopback in the network namespace of the process behind `pidfd`: on IPv4, and if nobody listens
/// there, on IPv6.
///
/// Call on a thread that ends afterwards: the thread stays in that namespace.
///
/// # Errors
/// The process is gone, or nobody listens.
pub fn connect_in_namespace(pidfd: BorrowedFd<'_>, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::NETWORK)?;
    let connect = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), timeout);
    connect(Ipv4Addr::LOCALHOST.into()).or_else(|_| connect(Ipv6Addr::LOCALHOST.into()))
}

/// TCP ports on which something listens in the network namespace of the process behind `pidfd`, each once.
///
/// Call on a thread that ends afterwards: the thread stays in that namespace.
///
/// # Errors
/// The process is gone.
pub fn listening_in_namespace(pidfd: BorrowedFd<'_>) -> io::Result<Vec<u16>> {
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::NETWORK)?;
    let mut ports = Vec::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => ports.extend(text.lines().skip(1).filter_map(listening)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// The port of a line of such a table, if its socket listens.
fn listening(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let port = local.rsplit_once(':')?.1;
    u16::from_str_radix(port, 16).ok().filter(|_| state == LISTENING)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_listening_port_is_read_from_its_line() {
        let line =
            |state| format!("   0: 0100007F:05AF 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0");
        assert_eq!(super::listening(&line("0A")), Some(1455));
        assert_eq!(super::listening(&line("01")), None);
        assert_eq!(super::listening("  sl  local_address rem_address   st"), None);
    }
}
