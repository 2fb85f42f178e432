//! What systemd is told. Without `$NOTIFY_SOCKET` every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

pub(crate) fn ready() {
    send(&[NotifyState::Ready]);
}

/// The line that `systemctl status` shows; one line, whatever the reasons hold.
pub(crate) fn status(text: &str) {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(500)
        .collect();
    send(&[NotifyState::Status(&line)]);
}

/// The daemon drains and needs up to `drain` for it, plus a little to end.
pub(crate) fn stopping(drain: Duration) {
    let extend = (drain + Duration::from_secs(5)).as_micros();
    let extend = u32::try_from(extend).unwrap_or(u32::MAX);
    send(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(extend),
    ]);
}

/// Pings systemd's watchdog, where the unit has one, at half its interval. The task runs on the same runtime as all
/// work, so it falls silent when the runtime hangs; the database is none of its business.
pub(crate) fn keep_watchdog_quiet() {
    if let Some(interval) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval / 2);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                send(&[NotifyState::Watchdog]);
            }
        });
    }
}
