// Command kubectl is kubectl alone. The scenarios run it thousands of times, and it starts
// in a third of the CPU time of the binary that has all of Kubernetes.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func main() { os.Exit(cli.Run(kubectl.NewDefaultKubectlCommand())) }
