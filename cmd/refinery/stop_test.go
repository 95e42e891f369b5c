package main

import (
	"net"
	"testing"
	"time"
)

// A connection on which no request has come, as clients open in advance, does not keep a control plane from stopping in time.
func TestStopWithAnIdleConnection(t *testing.T) {
	c := startControl(t)
	conn, err := net.Dial("tcp", c.plane.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	time.Sleep(50 * time.Millisecond) // until it is accepted
	begin := time.Now()
	if err := c.plane.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > stopTime {
		t.Errorf("stopping took %v", took)
	}
}
