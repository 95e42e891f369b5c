package api

import "time"

// SetTimes shortens what requests may take, until restore.
func SetTimes(body, idle, write time.Duration) (restore func()) {
	b, i, w := bodyTime, idleTime, writeTime
	bodyTime, idleTime, writeTime = body, idle, write
	return func() { bodyTime, idleTime, writeTime = b, i, w }
}
