//go:build !amd64

package hmacsha256

func implementations() []implementation { return nil }
