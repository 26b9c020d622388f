package task

import (
	"fmt"
	"strings"
)

// EnvRequest is the environment variable of the mover pod that holds the Request. What does not
// fit into it follows in EnvRequest_2, EnvRequest_3 and so on: Linux takes less than 128 KiB in
// one variable (MAX_ARG_STRLEN), and the CA bundle of a company can be longer.
const EnvRequest = "BLOCKMOVER_TASK"

const (
	maxVariableBytes = 96 << 10
	// maxRequestBytes fits into a pod, which etcd takes up to 1.5 MiB of.
	maxRequestBytes = 1 << 20
)

// Variable is one variable of the environment.
type Variable struct{ Name, Value string }

// Environ returns the variables that hold an encoded Request.
func Environ(encoded string) ([]Variable, error) {
	if len(encoded) > maxRequestBytes {
		return nil, fmt.Errorf("the task has %d bytes, and a pod takes %d: shorten the CA bundle (spec.caCert) of the driver's SnapshotMetadataService",
			len(encoded), maxRequestBytes)
	}
	variables := []Variable{{EnvRequest, ""}}
	for n := 2; len(encoded) > maxVariableBytes; n++ {
		variables[len(variables)-1].Value, encoded = encoded[:maxVariableBytes], encoded[maxVariableBytes:]
		variables = append(variables, Variable{fmt.Sprintf("%s_%d", EnvRequest, n), ""})
	}
	variables[len(variables)-1].Value = encoded
	return variables, nil
}

// FromEnviron decodes the Request that lookup finds the variables of.
func FromEnviron(lookup func(name string) (string, bool)) (Request, error) {
	text, ok := lookup(EnvRequest)
	if !ok {
		return Request{}, fmt.Errorf("environment variable %s is not set", EnvRequest)
	}
	var encoded strings.Builder
	for n := 2; ok; n++ {
		encoded.WriteString(text)
		text, ok = lookup(fmt.Sprintf("%s_%d", EnvRequest, n))
	}
	return DecodeRequest(encoded.String())
}
