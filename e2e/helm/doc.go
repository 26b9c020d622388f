// Package helm pins Helm, and tests the chart in deploy. It contains nothing but tests: that the
// chart gives what the kustomize base gives, with the engines of Helm 3 and Helm 4, and that its
// values are documented.
package helm
