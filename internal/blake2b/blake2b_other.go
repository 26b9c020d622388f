//go:build !amd64

package blake2b

func implementations() []implementation { return nil }
