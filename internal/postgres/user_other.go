//go:build !linux

package postgres

import "errors"

func spawn(_ account, f func(error)) {
	go f(errors.New("postgres does not run as root: run as an ordinary user, or " + remedy))
}
